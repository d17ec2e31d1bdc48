// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The error codes. Each has a page in docs/errors, which `coffer explain` prints.
//!
//! A code keeps its meaning for ever; a new meaning takes a new number.
#![forbid(unsafe_code)]

/// Whether a message stops the tool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// It does.
    Error,
    /// It does not.
    Warning,
}

macro_rules! codes {
    ($($code:ident)*) => {
        /// The code of a message.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Code {
            $(#[doc = concat!("See docs/errors/", stringify!($code), ".md.")] $code,)*
        }

        impl Code {
            /// All codes.
            pub const ALL: &'static [Self] = &[$(Self::$code),*];

            /// Returns the code as it is printed.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$code => stringify!($code),)*
                }
            }
            /// Returns the page as it stands in the repository.
            #[must_use]
            pub fn source(self) -> &'static str {
                match self {
                    $(Self::$code => {
                        include_str!(concat!("../../../docs/errors/", stringify!($code), ".md"))
                    })*
                }
            }
        }
    };
}

codes! {
    E01 E02 E03 E04 E05 E06 E07 E08 E09
    E10 E11 E12 E13 E14 E15 E16 E17 E18
    E21 E22 E23 E24 E25
    E30 E31 E32
    E40 E41 E42
    W01 W02 W03 W07 W08 W09 W10
}

impl Code {
    /// Returns the page as it is printed: what the code means, what is wrong and what is right.
    #[must_use]
    pub fn page(self) -> &'static str {
        let source = self.source();
        // Behind the licence, and without the mark of a heading.
        source.split_once("\n# ").map_or(source, |(_, page)| page)
    }
    /// Returns whether messages with this code are errors or warnings.
    #[must_use]
    pub fn severity(self) -> Severity {
        if self.name().starts_with('E') { Severity::Error } else { Severity::Warning }
    }
    /// Finds the code with this name, in capitals or not.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name().eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_name() {
        for &code in Code::ALL {
            assert_eq!(Code::find(&code.name().to_lowercase()), Some(code));
            assert!(code.page().starts_with(&format!("{}: ", code.name())), "{}", code.page());
        }
        assert_eq!(Code::find("E99"), None);
    }
}
