//! The flags of health checks, as docker's.

use anyhow::Result;
use clap::Args;
use nelly_image::RawConfig;
use nelly_sandbox::spec::quantity::Time;
use nelly_sandbox::spec::{HealthCheck, HealthOverrides, SpecError};
use nelly_vmm::text;

use crate::fail::OfFlag as _;
use crate::out;

/// How it is found out whether a container works.
#[derive(Debug, Default, Args)]
pub(crate) struct HealthArgs {
    /// Check the container's health with a line for its shell, run in it again and again: exit code
    /// 0 is healthy. Not with --rm, unless with -d [default: the image's check]
    #[arg(long, value_name = "COMMAND")]
    pub(crate) health_cmd: Option<String>,
    /// Time from one health probe to the next, and to the first [default: the image's, else 30s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_interval: Option<String>,
    /// Kill a health probe after this time: a failure [default: the image's, else 30s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_timeout: Option<String>,
    /// Failures in a row that make the container unhealthy [default: the image's, else 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) health_retries: Option<u32>,
    /// Count no failures so long after the start, until a probe succeeds [default: the image's,
    /// else 0s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_start_period: Option<String>,
    /// Time from one health probe to the next in the start period [default: the image's, else 5s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_start_interval: Option<String>,
    /// Do not run the image's health check
    #[arg(long, conflicts_with_all = ["health_cmd", "health_interval", "health_timeout", "health_retries",
        "health_start_period", "health_start_interval"])]
    pub(crate) no_healthcheck: bool,
}

impl HealthArgs {
    /// A flag that asks for a check.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [
            ("--health-cmd", self.health_cmd.is_some()),
            ("--health-interval", self.health_interval.is_some()),
            ("--health-timeout", self.health_timeout.is_some()),
            ("--health-retries", self.health_retries.is_some()),
            ("--health-start-period", self.health_start_period.is_some()),
            ("--health-start-interval", self.health_start_interval.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// What they say.
    ///
    /// # Errors
    /// A value that is wrong; the error names the flag.
    pub(crate) fn overrides(&self) -> Result<HealthOverrides> {
        let time = |text: &Option<String>, flag| {
            text.as_deref().map(|text| Time::SPAN.parse(text)).transpose().of_flag(flag)
        };
        let start_period =
            self.health_start_period.as_deref().map(|text| Time::DELAY.parse(text)).transpose();
        let overrides = HealthOverrides {
            none: self.no_healthcheck,
            command: self.health_cmd.clone(),
            interval: time(&self.health_interval, "--health-interval")?,
            timeout: time(&self.health_timeout, "--health-timeout")?,
            start_period: start_period.of_flag("--health-start-period")?,
            start_interval: time(&self.health_start_interval, "--health-start-interval")?,
            retries: self.health_retries,
        };
        if overrides.command.is_some() {
            // Finds an error in the flags before the image is read.
            HealthCheck::merge(None, &overrides).of_flag("--health-cmd")?;
        }
        Ok(overrides)
    }
}

/// The check of a container of an image. What the image says and cannot be a check is told, and is
/// as none.
///
/// # Errors
/// The flags want something of a check that there is not.
pub(crate) fn check(image: &RawConfig, overrides: &HealthOverrides) -> Result<Option<HealthCheck>> {
    let written = match image.health_check() {
        Ok(written) => written,
        Err(error) => {
            if !overrides.none {
                out::message(format_args!("{}; it is left out", text::chain(&error)));
            }
            None
        }
    };
    match HealthCheck::merge(written.as_ref(), overrides) {
        // The flags alone were looked at before.
        Err(error) if error != SpecError::NoHealthCommand => {
            out::message(format_args!("{error}; it is left out"));
            HealthCheck::merge(None, overrides)
        }
        checked => checked,
    }
    .of_flag(flag(overrides))
}

/// The flag of an override that is there without a command.
fn flag(overrides: &HealthOverrides) -> &'static str {
    match overrides {
        HealthOverrides { interval: Some(_), .. } => "--health-interval",
        HealthOverrides { timeout: Some(_), .. } => "--health-timeout",
        HealthOverrides { retries: Some(_), .. } => "--health-retries",
        HealthOverrides { start_period: Some(_), .. } => "--health-start-period",
        HealthOverrides { start_interval: Some(_), .. } => "--health-start-interval",
        _ => "--health-cmd",
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn parsed(words: &[&str]) -> Result<HealthArgs, clap::Error> {
        let command = HealthArgs::augment_args(Command::new("nelly").no_binary_name(true));
        HealthArgs::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    #[test]
    fn flags_become_a_check() {
        let none = parsed(&[]).unwrap();
        assert_eq!((none.given(), none.overrides().unwrap()), (None, HealthOverrides::default()));
        let words = [
            "--health-cmd",
            "curl -f localhost || exit 1",
            "--health-interval=5s",
            "--health-timeout=500ms",
            "--health-retries=2",
            "--health-start-period=0s",
            "--health-start-interval=1s",
        ];
        let args = parsed(&words).unwrap();
        assert_eq!(args.given(), Some("--health-cmd"));
        let made = check(&RawConfig::default(), &args.overrides().unwrap()).unwrap().unwrap();
        assert_eq!(made.command, ["/bin/sh", "-c", "curl -f localhost || exit 1"]);
        assert_eq!((made.interval_ms, made.timeout_ms, made.retries), (5000, 500, 2));
        assert_eq!((made.start_period_ms, made.start_interval_ms), (0, 1000));
        let off = parsed(&["--no-healthcheck"]).unwrap();
        assert_eq!((off.given(), off.overrides().unwrap().none), (None, true));
    }

    #[test]
    fn a_wrong_value_names_its_flag() {
        for (flag, value) in [
            ("--health-cmd", ""),
            ("--health-interval", "5"),
            ("--health-interval", "0s"),
            ("--health-timeout", "x"),
            ("--health-start-period", "-1s"),
            ("--health-start-interval", ""),
        ] {
            let error = parsed(&[&format!("{flag}={value}")]).unwrap().overrides().unwrap_err();
            assert!(format!("{error:#}").contains(flag), "{error:#}");
        }
        for words in [&["--health-retries", "0"][..], &["--no-healthcheck", "--health-cmd", "x"]] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
        // Something is said of a check that there is not.
        let alone = parsed(&["--health-timeout", "5s"]).unwrap().overrides().unwrap();
        let error = format!("{:#}", check(&RawConfig::default(), &alone).unwrap_err());
        assert!(error.contains("--health-timeout") && error.contains("--health-cmd"), "{error}");
    }
}
