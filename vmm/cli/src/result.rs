//! `--result FILE|fd:N`: one JSON object about the run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use nelly_sandbox::instance::Finished;
use nelly_sandbox::state::Id;
use nelly_vmm::text;
use serde_json::json;

use crate::output_file::OutputFile;

/// Where it goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ResultFile {
    File(PathBuf),
    Descriptor(u32),
}

impl ResultFile {
    /// Reads the flag's word.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text.strip_prefix("fd:") {
            None if text.is_empty() => bail!("the file name is empty"),
            None => Ok(Self::File(text.into())),
            Some(number) => match number.parse() {
                Ok(number) => Ok(Self::Descriptor(number)),
                Err(_) => bail!("{text:?} is not fd:N with the number of an open file descriptor"),
            },
        }
    }

    /// Opens it, before anything is started.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn open(&self) -> Result<OutputFile> {
        match self {
            Self::File(path) => OutputFile::file("--result", path),
            Self::Descriptor(number) => OutputFile::descriptor("--result", *number),
        }
    }
}

/// The object, fit for a terminal. `total` counts where nothing was stamped to the end.
pub(crate) fn object(
    id: &Id,
    code: u8,
    reason: &str,
    total: Duration,
    finished: Option<&Finished>,
) -> String {
    let total = u64::try_from(total.as_nanos()).expect("nobody waits for 584 years");
    let timings = match finished {
        Some(Finished { timeline, .. }) => {
            json!({ "total_ns": timeline.total_ns(), "timeline": timeline })
        }
        None => json!({ "total_ns": total }),
    };
    let faults = finished.and_then(|finished| finished.faults.as_ref());
    let confinement = finished.and_then(|finished| finished.confinement.as_ref());
    let object = json!({ "schema": 1, "id": id.to_string(), "exit": code, "reason": reason, "timings": timings,
        "faults": faults, "confinement": confinement });
    text::json(&object.to_string()).into_owned()
}

#[cfg(test)]
mod tests {
    use nelly_sandbox::timeline::Timeline;
    use nelly_vmm::machine::DeviceFaults;

    use super::*;

    #[test]
    fn places_parse_and_a_run_is_one_object() {
        assert_eq!(ResultFile::parse("fd:3").unwrap(), ResultFile::Descriptor(3));
        assert_eq!(ResultFile::parse("fd").unwrap(), ResultFile::File("fd".into()));
        assert!(ResultFile::parse("fd:x").is_err() && ResultFile::parse("").is_err());
        let id = Id::random().unwrap();
        let told = object(&id, 7, "exited", Duration::from_nanos(5), None);
        let read: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((read["exit"].as_u64(), read["reason"].as_str()), (Some(7), Some("exited")));
        assert_eq!(read["id"], id.to_string());
        assert_eq!(read["timings"], json!({ "total_ns": 5 }));
        assert_eq!(read["faults"], serde_json::Value::Null);
        let fault = DeviceFaults {
            slot: 2,
            device: "disk image".into(),
            kind: "driver".into(),
            first: "\u{9b}2J".into(),
            count: 3,
        };
        let finished = Finished { timeline: Timeline::new(7), faults: Some(vec![fault]), confinement: None };
        let told = object(&id, 0, "exited", Duration::ZERO, Some(&finished));
        assert!(told.is_ascii() && !told.contains('\n'), "{told}");
        let read: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(read["faults"][0]["count"], 3);
        assert_eq!(read["faults"][0]["first"], "\u{9b}2J");
    }
}
