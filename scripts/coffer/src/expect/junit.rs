// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Writes the outcome of a run as a JUnit report, which CI systems read.
#![forbid(unsafe_code)]

use super::Outcome;
use std::fmt::Write as _;

/// Returns the report: one test case for each expectation, and one for the run as a whole.
#[must_use]
pub fn report(suite: &str, outcome: &Outcome) -> String {
    let mut cases = String::new();
    let mut failures = 0;
    for case in &outcome.cases {
        let failure = case.matched.is_none().then(|| "nothing matched".to_owned());
        failures += u32::from(failure.is_some());
        add_case(&mut cases, &case.track, &case.pattern, failure.as_deref());
    }
    let whole = outcome.report();
    failures += u32::from(whole.is_some());
    add_case(&mut cases, suite, "the whole run", whole.as_deref());
    let count = outcome.cases.len() + 1;
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuite name=\"{}\" tests=\"{count}\" failures=\"{failures}\">\n{cases}</testsuite>\n",
        escaped(suite)
    )
}

fn add_case(text: &mut String, class: &str, name: &str, failure: Option<&str>) {
    let (class, name) = (escaped(class), escaped(name));
    let head = format!("  <testcase classname=\"{class}\" name=\"{name}\"");
    // Writing to a string does not fail.
    let _ = match failure {
        None => writeln!(text, "{head}/>"),
        Some(failure) => {
            writeln!(text, "{head}>\n    <failure>{}</failure>\n  </testcase>", escaped(failure))
        }
    };
}

/// Replaces what XML 1.0 gives a meaning, or does not allow at all.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::drive::Problem;
    use super::super::engine::Case;
    use super::*;

    #[test]
    fn a_failed_run_counts_and_is_escaped() {
        let case = |matched| Case { track: "a".into(), pattern: "<x> & \x1b".into(), matched };
        let outcome = Outcome {
            cases: vec![case(Some("x".into())), case(None)],
            problem: Some(Problem::Hung { seconds: 5, waiting: String::new() }),
            log: b"a| x\n".to_vec(),
        };
        let report = report("boot.toml", &outcome);
        assert!(report.contains("tests=\"3\" failures=\"2\""), "{report}");
        assert!(report.contains("name=\"&lt;x&gt; &amp; \u{fffd}\""), "{report}");
        assert!(report.contains("<failure>hung: not over after 5 s"), "{report}");
    }
}
