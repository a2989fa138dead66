//! What the process that reads an image is asked, and what it answers. Who asks believes the answer
//! as little as the image: it is bounded, and what points somewhere points to something.

use nelly_disk::partitions::PARTITIONS_MAX;
use nelly_disk::{ChainFile, Format};
use serde::{Deserialize, Serialize};

use crate::entry::FileRef;
use crate::files::{INITRD_MAX, KERNEL_MAX};
use crate::loaders::{ENTRIES_MAX, INITRDS_MAX};
use crate::plan::{BootPlan, COMMAND_LINE_MAX};

/// Of this program and no other: both sides are one build.
pub(crate) const VERSION: u32 = 1;
/// Most bytes of a question.
pub(crate) const QUESTION_MAX: u64 = 1 << 20;
/// Most bytes of an answer.
pub(crate) const ANSWER_MAX: u64 = 8 << 20;
/// Most lines of each list for people.
const LINES_MAX: usize = 4096;
/// Most drivers that are told of.
const DRIVERS_MAX: usize = 64;

/// What is wanted of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// How it boots.
    Plan {
        /// What the kernel's last `console=` has to name, if that matters.
        console: Option<String>,
        /// Title, id or kernel of another entry than the image's default.
        entry: Option<String>,
        /// Write the kernel to the first file that is to be written.
        kernel: bool,
        /// Write the initrds to the next one.
        initrd: bool,
        /// Kernel and initrds that are written have less bytes than this together.
        below: u64,
    },
    /// The user that cloud-init in it makes by itself.
    User,
}

impl Wanted {
    /// How many files are written.
    pub(crate) fn outputs(&self) -> usize {
        self.most_of_outputs().count()
    }

    /// Most bytes of each file that is written.
    pub(crate) fn most_of_outputs(&self) -> impl Iterator<Item = u64> {
        let (kernel, initrd) = match self {
            Self::Plan { kernel, initrd, .. } => (*kernel, *initrd),
            Self::User => (false, false),
        };
        kernel.then_some(KERNEL_MAX).into_iter().chain(initrd.then_some(INITRD_MAX))
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) version: u32,
    /// Whether each of the files that come along, the image first, is qcow2, and its name in
    /// messages.
    pub(crate) chain: Vec<(bool, String)>,
    pub(crate) wanted: Wanted,
}

impl Question {
    pub(crate) fn of(chain: &[ChainFile], wanted: &Wanted) -> Self {
        let files = chain.iter().map(|file| (file.format == Format::Qcow2, file.name.clone()));
        Self { version: VERSION, chain: files.collect(), wanted: wanted.clone() }
    }
}

/// A partition, or a disk without a table, and what fills it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its number; `None` for a disk without a table.
    pub number: Option<u32>,
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Its type in the table.
    pub kind: Option<String>,
    /// Its `PARTUUID`.
    pub partuuid: Option<String>,
    /// What fills it, with label and UUID, if that is known.
    pub file_system: Option<(String, String, String)>,
}

/// How an image boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What kind of partition table the disk has.
    pub table: Option<String>,
    /// The partitions, in the order of the table.
    pub places: Vec<Place>,
    /// Which one is the root file system.
    pub root: Option<usize>,
    /// Which one is `/boot`, if it is one of its own.
    pub boot: Option<usize>,
    /// Which one is the EFI system partition.
    pub esp: Option<usize>,
    /// What a boot takes.
    pub plan: BootPlan,
}

impl Found {
    /// A file's path with its partition.
    #[must_use]
    pub fn shown(&self, file: &FileRef) -> String {
        let number = self.places.get(file.slot).map(|place| place.number);
        match number {
            Some(Some(number)) => format!("{} on partition {number}", file.path),
            _ => format!("{} on the whole disk", file.path),
        }
    }

    /// What of it cannot be.
    pub(crate) fn wrong(&self) -> Option<&'static str> {
        let plan = &self.plan;
        let places = self.places.len();
        let far = |place: Option<usize>| place.is_some_and(|place| place >= places);
        let lost = |file: &FileRef| file.slot >= places;
        let long = |lines: &[String]| lines.len() > LINES_MAX;
        if places > PARTITIONS_MAX {
            Some("there are too many partitions")
        } else if far(self.root) || far(self.boot) || far(self.esp) {
            Some("there is no such partition")
        } else if plan.entries.len() > ENTRIES_MAX || plan.chosen >= plan.entries.len() {
            Some("there is no such entry")
        } else if plan.entries.iter().any(|entry| entry.initrds.len() > INITRDS_MAX) {
            Some("an entry has too many initrds")
        } else if plan.entries.iter().any(|entry| lost(&entry.kernel) || entry.initrds.iter().any(lost)) {
            Some("a file is on no partition")
        } else if plan.command_line.len() > COMMAND_LINE_MAX {
            Some("the command line is too long")
        } else if long(&plan.notes) || long(&plan.looked_for) || plan.drivers.needed.len() > DRIVERS_MAX {
            Some("it has too much to tell")
        } else {
            None
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Said {
    Found(Box<Found>),
    User(Option<String>),
    /// There is nothing to boot.
    Nothing(String),
    /// No entry is called so.
    NoEntry(String),
    /// Kernel and initrds have so many bytes.
    TooLarge(u64),
    /// The image is refused.
    Refused(String),
}
