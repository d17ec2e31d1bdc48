// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A bundle that comes by a port for requests, piece by piece, and is checked before it is used.
//!
//! It lies in free memory that EL2 maps. Who asks for a VM to be made or updated has it checked, a
//! piece at a time: by a free core, or by the core of the VM that is to be updated.
#![forbid(unsafe_code)]

use super::Hypervisor;
use crate::arch::{self, HypMemory};
use crate::control::{Line, PUT_USAGE, Refusal, base64};
use crate::id::{Mpidr, VmId};
use crate::memory::owners::Owner;
use crate::plan::Name;
use crate::spec::vmsa::HypAttributes;
use crate::sync::Lock;
use core::fmt::{self, Write};

/// What the memory for an upload is a multiple of: EL2 maps it in blocks.
const GRANULE: u64 = 2 << 20;
/// The most bytes in an upload: mapping so many blocks, or unmapping them, takes some 15,000
/// instructions.
const BYTES_MAX: u64 = 40 << 20;
/// The bytes that are checked at once: some 10,000 instructions where the core has CRC32C.
const PIECE_BYTES: u64 = 32 << 10;

/// What has come by the ports for requests.
#[derive(Debug, Default)]
pub struct Upload(Lock<Kept>);

#[derive(Debug, Default)]
struct Kept {
    stage: Stage,
    /// Why nobody could use what is refused.
    why: Line,
}

/// A bundle in memory.
#[derive(Clone, Copy, Debug)]
pub struct Staged {
    /// The memory that it has, whole blocks.
    pub memory: HypMemory,
    /// The bytes of it that are the bundle's.
    pub bytes: u32,
    crc32c: u32,
}

impl Staged {
    /// Returns the bundle.
    #[must_use]
    pub fn bundle(self) -> HypMemory {
        self.memory.part(0, self.bytes.into()).unwrap_or(self.memory)
    }
}

/// What is wanted of a bundle.
#[derive(Clone, Debug)]
pub enum Task {
    /// To make a VM.
    Create {
        /// Its name.
        name: Name,
        /// Which pCPU makes it.
        maker: Mpidr,
    },
    /// To update a VM.
    Update {
        /// Which.
        vm: VmId,
        /// After how many milliseconds it gets its old images back.
        confirm_ms: Option<u32>,
    },
}

/// Nobody can use it: [`Hypervisor::write_upload`] says why.
#[derive(Clone, Copy, Debug)]
pub struct Refused;

/// How far it has come.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    None,
    Filling(Staged),
    Checking {
        staged: Staged,
        task: Task,
        at: u64,
        crc32c: u32,
    },
    /// It is whole, and somebody makes something of it.
    InUse(Staged),
    /// Nobody could use it.
    Refused(Staged),
}

/// Who checks the bundle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checker {
    /// A pCPU that makes a VM.
    Maker(Mpidr),
    /// The core of vCPU 0 of a VM that is to be updated.
    Vm(VmId),
}

impl Task {
    fn is_for(&self, by: Checker) -> bool {
        match self {
            Self::Create { maker, .. } => by == Checker::Maker(*maker),
            Self::Update { vm, .. } => by == Checker::Vm(*vm),
        }
    }
}

/// What a look at a piece has brought.
#[derive(Debug)]
pub enum Progress {
    /// There is nothing to look at for this core, or no more.
    NotMine,
    /// There is more to look at.
    More,
    /// All of it is what was sent; nobody else is told so.
    Whole(Staged, Task),
}

impl Stage {
    fn staged(&self) -> Option<Staged> {
        match self {
            Self::None => None,
            Self::Filling(staged)
            | Self::Checking { staged, .. }
            | Self::InUse(staged)
            | Self::Refused(staged) => Some(*staged),
        }
    }
}

impl Hypervisor {
    /// Makes room for a bundle; what came before is forgotten. No byte is none.
    pub(super) fn begin_upload(&self, bytes: u32, crc32c: u32) -> Result<(), Refusal> {
        let stage = &mut self.upload.0.acquire().stage;
        if let Stage::Checking { .. } | Stage::InUse(_) = *stage {
            return Err(Refusal::Busy);
        }
        if u64::from(bytes) > BYTES_MAX {
            return Err(Refusal::TooLarge);
        }
        let fits = |memory: &HypMemory| bytes > 0 && memory.range().size() >= u64::from(bytes);
        let kept = stage.staged().map(|staged| staged.memory);
        let memory = match kept.filter(fits) {
            Some(memory) => memory,
            None => {
                *stage = Stage::None;
                if let Some(memory) = kept {
                    self.give_back(memory, Owner::Upload);
                }
                if bytes == 0 {
                    return Ok(());
                }
                self.reserve(bytes.into()).ok_or(Refusal::TooLarge)?
            }
        };
        *stage = Stage::Filling(Staged { memory, bytes, crc32c });
        Ok(())
    }

    /// Takes memory for a bundle.
    fn reserve(&self, bytes: u64) -> Option<HypMemory> {
        let owners = &mut self.estate.acquire().owners;
        let range = owners.highest(bytes.next_multiple_of(GRANULE), GRANULE)?;
        owners.claim(range, Owner::Upload).ok()?;
        let mapped = arch::map_hyp(range, HypAttributes::Data);
        if mapped.is_err() {
            let _ = owners.give(range, Owner::Upload, Owner::Free);
        }
        mapped.ok()
    }

    /// Gives memory for a bundle back.
    pub(super) fn give_back(&self, memory: HypMemory, owner: Owner) {
        // What was mapped at once is unmapped at once.
        let unmapped = arch::unmap_hyp(memory);
        debug_assert!(unmapped.is_ok());
        let _ = self.estate.acquire().owners.give(memory.range(), owner, Owner::Free);
    }

    /// Takes a piece of the bundle.
    pub(super) fn put(&self, offset: u32, data: &str) -> Result<(), Refusal> {
        let piece = base64::decode(data).ok_or(Refusal::Arguments(PUT_USAGE))?;
        let kept = self.upload.0.acquire();
        let staged = match &kept.stage {
            Stage::Filling(staged) => staged,
            Stage::Checking { .. } | Stage::InUse(_) => return Err(Refusal::Busy),
            Stage::None | Stage::Refused(_) => return Err(Refusal::NoUpload),
        };
        let bytes = piece.as_bytes();
        let place =
            staged.bundle().part(offset.into(), bytes.len() as u64).ok_or(Refusal::NoUpload)?;
        arch::with_bytes(place, |place| place.copy_from_slice(bytes));
        Ok(())
    }

    /// Begins to check the bundle for the task that `task` makes, where there is one to check.
    pub(super) fn check_upload(
        &self,
        task: impl FnOnce() -> Result<Task, Refusal>,
    ) -> Result<(), Refusal> {
        let stage = &mut self.upload.0.acquire().stage;
        match *stage {
            Stage::Filling(staged) => {
                *stage = Stage::Checking { staged, task: task()?, at: 0, crc32c: 0 };
                Ok(())
            }
            Stage::Checking { .. } | Stage::InUse(_) => Err(Refusal::Busy),
            Stage::None | Stage::Refused(_) => Err(Refusal::NoUpload),
        }
    }

    /// Looks at the next piece of what this core has to check.
    pub(super) fn check_piece(&self, by: Checker) -> Progress {
        let (staged, piece, before) = {
            let Stage::Checking { staged, task, at, crc32c } = &self.upload.0.acquire().stage
            else {
                return Progress::NotMine;
            };
            if !task.is_for(by) {
                return Progress::NotMine;
            }
            let left = u64::from(staged.bytes).saturating_sub(*at);
            (*staged, staged.bundle().part(*at, left.min(PIECE_BYTES)), *crc32c)
        };
        // Without the lock, for which others wait: nobody else has this to check.
        let sum = piece.map(|piece| arch::crc32c(before, piece));
        let mut kept = self.upload.0.acquire();
        let Stage::Checking { task, at, crc32c, .. } = &mut kept.stage else {
            return Progress::NotMine;
        };
        if let Some(sum) = sum {
            *crc32c = sum;
            *at = at.saturating_add(PIECE_BYTES);
            return Progress::More;
        }
        let task = task.clone();
        kept.stage = Stage::InUse(staged);
        drop(kept);
        if before == staged.crc32c {
            return Progress::Whole(staged, task);
        }
        let expected = staged.crc32c;
        let _ = self.refuse_upload(&format_args!(
            "not all of it has come: crc32c {expected:08x} expected, {before:08x}"
        ));
        Progress::NotMine
    }

    /// Lets what is whole be looked at again later.
    pub(super) fn put_off(&self, task: Task) {
        let stage = &mut self.upload.0.acquire().stage;
        if let Stage::InUse(staged) = *stage {
            let (at, crc32c) = (staged.bytes.into(), staged.crc32c);
            *stage = Stage::Checking { staged, task, at, crc32c };
        }
    }

    /// Forgets what was wanted for a VM that is gone.
    pub(super) fn abandon(&self, vm: VmId) {
        let stage = &mut self.upload.0.acquire().stage;
        if let Stage::Checking { staged, task, .. } = stage
            && task.is_for(Checker::Vm(vm))
        {
            *stage = Stage::Filling(*staged);
        }
    }

    /// Ends what was wanted of the bundle: it is somebody's now.
    pub(super) fn end_upload(&self) {
        self.upload.0.acquire().stage = Stage::None;
    }

    /// Ends what was wanted of the bundle, which cannot be had: it stays, with the reason.
    pub(super) fn refuse_upload(&self, why: &dyn fmt::Display) -> Refused {
        log::error!(target: "vm", "upload: {why}");
        let mut kept = self.upload.0.acquire();
        if let Stage::InUse(staged) = kept.stage {
            kept.stage = Stage::Refused(staged);
        }
        kept.why = Line::default();
        // What does not fit is not said.
        let _ = write!(kept.why, "{why}");
        Refused
    }

    /// Writes how it stands with the bundle.
    pub(super) fn write_upload(&self, line: &mut Line) -> fmt::Result {
        let kept = self.upload.0.acquire();
        let state = match &kept.stage {
            Stage::None => "none",
            Stage::Filling(_) => "filling",
            Stage::Checking { .. } | Stage::InUse(_) => "checking",
            Stage::Refused(_) => "refused",
        };
        let bytes = kept.stage.staged().map_or(0, |staged| staged.bytes);
        write!(line, " state={state} bytes={bytes}")?;
        if let Stage::Refused(_) = kept.stage {
            line.write_str(" text=")?;
            // What does not fit is not said.
            let _ = line.write_str(kept.why.as_str());
        }
        Ok(())
    }
}
