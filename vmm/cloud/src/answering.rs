//! The side of the process that reads an image. It has the files that it was handed, and needs
//! nothing else: a program calls [`Reading::receive`], gives up everything, and then calls
//! [`Reading::answer`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use nelly_disk::{ChainFile, Disk, Format, disk_of_chain};

use crate::error::{CloudError, chain};
use crate::files::{INITRD_MAX, KERNEL_MAX};
use crate::layout::{Image, Parts, Slot};
use crate::passed::receive;
use crate::plan::find_entry;
use crate::said::{ANSWER_MAX, Found, Place, QUESTION_MAX, Question, Said, VERSION, Wanted};

/// A question with its files.
#[derive(Debug)]
pub struct Reading {
    chain: Vec<ChainFile>,
    outputs: Vec<File>,
    wanted: Wanted,
}

impl Reading {
    /// Takes a question from the socket that whoever started this process holds the other end of.
    ///
    /// # Errors
    /// There is none, or it is of another program.
    pub fn receive(from: impl AsFd) -> io::Result<Self> {
        let unusable = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let (files, text) = receive(from, QUESTION_MAX)?;
        let question: Question = serde_json::from_slice(&text)?;
        if question.version != VERSION {
            return Err(unusable("the question is of another version"));
        }
        if files.len() != question.chain.len() + question.wanted.outputs() {
            return Err(unusable("not all files came along"));
        }
        let mut files = files.into_iter().map(File::from);
        let named = |(qcow2, name), file| ChainFile {
            file,
            format: if qcow2 { Format::Qcow2 } else { Format::Raw },
            name,
        };
        let chain = question.chain.into_iter().zip(&mut files).map(|(named_so, file)| named(named_so, file));
        let chain = chain.collect();
        Ok(Self { chain, outputs: files.collect(), wanted: question.wanted })
    }

    /// Most bytes that a file gets.
    #[must_use]
    pub fn most_written(&self) -> u64 {
        match &self.wanted {
            Wanted::Plan { below, .. } => (*below).min(INITRD_MAX.max(KERNEL_MAX)),
            Wanted::User => 0,
        }
    }

    /// Reads the image, and says to `out` what it found.
    ///
    /// # Errors
    /// Nobody hears it.
    pub fn answer(self, out: &mut dyn Write) -> io::Result<()> {
        let said = match disk_of_chain(self.chain, true) {
            Ok(disk) => look(&*disk, &self.wanted, &self.outputs),
            Err(error) => Said::Refused(chain(&error)),
        };
        let mut line = serde_json::to_vec(&said)?;
        if line.len() as u64 >= ANSWER_MAX {
            let much = "what its boot loader says is too much to be passed on".to_owned();
            line = serde_json::to_vec(&Said::Refused(much))?;
        }
        line.push(b'\n');
        out.write_all(&line)
    }
}

fn look(disk: &dyn Disk, wanted: &Wanted, outputs: &[File]) -> Said {
    let said = Parts::read(disk).and_then(|parts| match wanted {
        Wanted::User => Ok(Said::User(Image::open(&parts)?.default_user())),
        Wanted::Plan { .. } => plan(&Image::open(&parts)?, wanted, outputs),
    });
    said.unwrap_or_else(|error| match &error {
        CloudError::Nothing { .. } => Said::Nothing(chain(&error)),
        CloudError::NoEntry { .. } => Said::NoEntry(chain(&error)),
        other => Said::Refused(chain(other)),
    })
}

fn plan(image: &Image<'_>, wanted: &Wanted, outputs: &[File]) -> Result<Said, CloudError> {
    let Wanted::Plan { console, entry, kernel, initrd, below } = wanted else { return Ok(Said::User(None)) };
    let plan = find_entry(image, console.as_deref(), entry.as_deref())?;
    let taken = plan.entry();
    let of_kernel = if *kernel { taken.kernel.bytes } else { 0 };
    let initrds = taken.initrds.iter().map(|initrd| initrd.bytes).filter(|_| *initrd);
    let bytes = initrds.fold(of_kernel, u64::saturating_add);
    if bytes >= *below {
        return Ok(Said::TooLarge(bytes));
    }
    let mut outputs = outputs.iter();
    if *kernel && let Some(mut out) = outputs.next() {
        image.copy(&taken.kernel, KERNEL_MAX, &mut out)?;
    }
    if *initrd && let Some(mut out) = outputs.next() {
        image.copy_initrds(taken, &mut out)?;
    }
    Ok(Said::Found(Box::new(Found {
        table: image.table.map(|table| table.kind.to_string()),
        places: image.slots.iter().map(place).collect(),
        root: image.root,
        boot: image.boot,
        esp: image.esp,
        plan,
    })))
}

fn place(slot: &Slot<'_>) -> Place {
    let partition = slot.partition.as_ref();
    let file_system =
        slot.identity.as_ref().map(|found| (found.kind.to_string(), found.label.clone(), found.uuid.clone()));
    Place {
        number: partition.map(|found| found.number),
        start: partition.map_or(0, |found| found.start),
        bytes: slot.bytes,
        kind: partition.map(|found| found.kind.to_string()),
        partuuid: partition.map(|found| found.uuid.clone()),
        file_system,
    }
}
