//! `--result FILE|fd:N`: one JSON object about the run.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nelly_sandbox::instance::Finished;
use nelly_sandbox::state::Id;
use nelly_vmm::text;
use serde_json::json;

/// Where it goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    File(PathBuf),
    Descriptor(u32),
}

impl Target {
    /// Reads the flag's word.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text.strip_prefix("fd:") {
            None if text.is_empty() => bail!("an empty name is no file"),
            None => Ok(Self::File(text.into())),
            Some(number) => match number.parse() {
                Ok(number) => Ok(Self::Descriptor(number)),
                Err(_) => bail!("{text:?}: write fd:N with the number of an open descriptor"),
            },
        }
    }

    /// Writes the object and a newline. `total` counts where nothing was stamped to the end.
    pub(crate) fn write(
        &self,
        id: &Id,
        code: u8,
        reason: &str,
        total: Duration,
        finished: Option<&Finished>,
    ) -> Result<()> {
        let total = u64::try_from(total.as_nanos()).expect("nobody waits for 584 years");
        let timings = match finished {
            Some(Finished { timeline, .. }) => {
                json!({ "total_ns": timeline.total_ns(), "timeline": timeline })
            }
            None => json!({ "total_ns": total }),
        };
        let faults = finished.and_then(|finished| finished.faults.as_ref());
        let object = json!({ "schema": 1, "id": id.to_string(), "exit": code, "reason": reason, "timings": timings,
            "faults": faults });
        let (mut file, name) = match self {
            Self::File(path) => (File::create(path), path.display().to_string()),
            // Opened anew by number: the descriptor itself stays its owner's.
            Self::Descriptor(number) => (
                File::options().append(true).open(format!("/dev/fd/{number}")),
                format!("descriptor {number}"),
            ),
        };
        let written = file.as_mut().map_err(|error| std::io::Error::new(error.kind(), error.to_string()));
        // One write: formatting into the file would be a system call a word.
        written
            .and_then(|file| file.write_all(format!("{}\n", text::json(&object.to_string())).as_bytes()))
            .with_context(|| format!("--result: cannot write {name}"))
    }
}

#[cfg(test)]
mod tests {
    use nelly_sandbox::timeline::Timeline;
    use nelly_vmm::machine::DeviceFaults;

    use super::*;

    #[test]
    fn targets_parse_and_a_file_gets_one_object() {
        assert_eq!(Target::parse("fd:3").unwrap(), Target::Descriptor(3));
        assert!(Target::parse("fd:x").is_err() && Target::parse("").is_err());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.json");
        let id = Id::random().unwrap();
        Target::parse(path.to_str().unwrap())
            .unwrap()
            .write(&id, 7, "exited", Duration::from_nanos(5), None)
            .unwrap();
        let object: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((object["exit"].as_u64(), object["reason"].as_str()), (Some(7), Some("exited")));
        assert_eq!(object["id"], id.to_string());
        assert_eq!(object["timings"], json!({ "total_ns": 5 }));
        assert_eq!(object["faults"], serde_json::Value::Null);
        let fault = DeviceFaults {
            slot: 2,
            device: "disk image".into(),
            kind: "driver".into(),
            first: "\u{9b}2J".into(),
            count: 3,
        };
        let finished = Finished { timeline: Timeline::new(7), faults: Some(vec![fault]) };
        let target = Target::parse(path.to_str().unwrap()).unwrap();
        target.write(&id, 0, "exited", Duration::ZERO, Some(&finished)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.is_ascii(), "{text}");
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["faults"][0]["count"], 3);
        assert_eq!(object["faults"][0]["first"], "\u{9b}2J");
        let error =
            Target::File("/nonexistent/r".into()).write(&id, 0, "exited", Duration::ZERO, None).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/r"));
    }
}
