//! How it is found out whether a container works: a command that is run in it again and again.
//! As docker's, whose rules join what the image says and what a caller says.

use std::time::Duration;

use nelly_image::ImageHealthCheck;
use serde::{Deserialize, Serialize};

use super::SpecError;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// The shortest interval that an image can ask for: it must not keep the host busy.
const IMAGE_LEAST: Duration = Duration::from_millis(100);

/// The longest of all times.
const MOST: Duration = Duration::from_hours(365 * 24);

/// The health check of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Program and arguments of a probe, never empty. It runs in the container with the user, the
    /// environment and the working directory of its first process; exit code 0 is healthy.
    pub command: Vec<String>,
    /// Time from the end of a probe to the next one, and from the container's start to the first,
    /// in milliseconds.
    pub interval_ms: u64,
    /// How long a probe may take before it is killed and counts as a failure, in milliseconds.
    pub timeout_ms: u64,
    /// How long after the container's start failures do not count, in milliseconds, unless a probe
    /// has succeeded.
    pub start_period_ms: u64,
    /// The interval in that time, in milliseconds.
    pub start_interval_ms: u64,
    /// How many failures in a row make the container unhealthy, at least 1.
    pub retries: u32,
}

/// What a caller says of the health check, over what the image says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthOverrides {
    /// There is none, whatever the image says.
    pub none: bool,
    /// A line for the shell.
    pub command: Option<String>,
    /// See [`HealthCheck`].
    pub interval: Option<Duration>,
    /// See [`HealthCheck`].
    pub timeout: Option<Duration>,
    /// See [`HealthCheck`].
    pub start_period: Option<Duration>,
    /// See [`HealthCheck`].
    pub start_interval: Option<Duration>,
    /// See [`HealthCheck`].
    pub retries: Option<u32>,
}

impl HealthOverrides {
    /// Something is said of a check without saying which.
    fn lacks_command(&self) -> bool {
        let times = [self.interval, self.timeout, self.start_period, self.start_interval];
        self.command.is_none() && (self.retries.is_some() || times.iter().any(Option::is_some))
    }
}

fn refuse(what: &'static str, text: impl Into<String>, hint: &'static str) -> SpecError {
    SpecError::Flag { what, text: text.into(), hint }
}

/// A duration of an image; `None` if it says nothing.
fn of_image(ns: i64) -> Result<Option<Duration>, SpecError> {
    let ns = u64::try_from(ns)
        .map_err(|_| refuse("health check of the image", format!("{ns} ns"), "a time is not negative"))?;
    Ok((ns > 0).then(|| Duration::from_nanos(ns)))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.min(MOST).as_millis()).expect("a year fits")
}

impl HealthCheck {
    /// The time between two probes, by default.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    /// How long a probe may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// How long failures do not count.
    #[must_use]
    pub fn start_period(&self) -> Duration {
        Duration::from_millis(self.start_period_ms)
    }

    /// The time between two probes meanwhile.
    #[must_use]
    pub fn start_interval(&self) -> Duration {
        Duration::from_millis(self.start_interval_ms)
    }

    /// The check of a container; `None` if it has none. What the caller does not say is as the
    /// image says it, else docker's default.
    ///
    /// # Errors
    /// The image's check cannot be one, or the caller says something of a check that there is not.
    pub fn merge(
        image: Option<&ImageHealthCheck>,
        caller: &HealthOverrides,
    ) -> Result<Option<Self>, SpecError> {
        if caller.none {
            return Ok(None);
        }
        let shell = |line: &str, shell: &[String]| -> Vec<String> {
            let default = || ["/bin/sh", "-c"].map(str::to_owned).to_vec();
            let mut words = if shell.is_empty() { default() } else { shell.to_vec() };
            words.push(line.to_owned());
            words
        };
        let its_shell = image.map_or(&[][..], |image| &image.shell);
        let command = match &caller.command {
            Some(line) if line.is_empty() || line.contains('\0') => {
                let hint = "write a line for the container's shell; --no-healthcheck means none";
                return Err(refuse("health command", line, hint));
            }
            Some(line) => Some(shell(line, its_shell)),
            None => match image.map_or(&[][..], |image| &image.test) {
                [] => None,
                [none] if none == "NONE" => None,
                [kind, words @ ..] if kind == "CMD" && !words.is_empty() => Some(words.to_vec()),
                [kind, line] if kind == "CMD-SHELL" => Some(shell(line, its_shell)),
                [kind, ..] => {
                    let hint = "it begins with NONE, CMD or CMD-SHELL, and a command follows";
                    return Err(refuse("health check of the image", kind, hint));
                }
            },
        };
        let Some(command) = command else {
            return match caller.lacks_command() {
                true => Err(SpecError::NoHealthCommand),
                false => Ok(None),
            };
        };
        if command[0].is_empty() || command.iter().any(|word| word.contains('\0')) {
            let hint = "no word contains a NUL byte, and the program's name is not empty";
            return Err(refuse("health check of the image", command.join(" "), hint));
        }
        let written = image.map_or([0; 4], |image| {
            [image.interval_ns, image.timeout_ns, image.start_period_ns, image.start_interval_ns]
        });
        let [interval, timeout, start_period, start_interval] = written.map(of_image);
        let least = |time: Option<Duration>| time.map(|time| time.max(IMAGE_LEAST));
        let retries = image.map_or(Ok(0), |image| u32::try_from(image.retries));
        let retries = retries.map_err(|_| {
            refuse("health check of the image", "Retries", "write a number from 0 to 4294967295")
        })?;
        let least_ms = |time: Duration| milliseconds(time).max(1);
        Ok(Some(Self {
            command,
            interval_ms: least_ms(caller.interval.or(least(interval?)).unwrap_or(INTERVAL)),
            timeout_ms: least_ms(caller.timeout.or(timeout?).unwrap_or(TIMEOUT)),
            start_period_ms: milliseconds(caller.start_period.or(start_period?).unwrap_or_default()),
            start_interval_ms: least_ms(
                caller.start_interval.or(least(start_interval?)).unwrap_or(START_INTERVAL),
            ),
            retries: caller.retries.or((retries > 0).then_some(retries)).unwrap_or(RETRIES).max(1),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(test: &[&str]) -> ImageHealthCheck {
        ImageHealthCheck {
            test: test.iter().map(|word| (*word).to_owned()).collect(),
            interval_ns: 0,
            timeout_ns: 0,
            start_period_ns: 0,
            start_interval_ns: 0,
            retries: 0,
            shell: Vec::new(),
        }
    }

    fn caller(command: Option<&str>) -> HealthOverrides {
        HealthOverrides { command: command.map(str::to_owned), ..HealthOverrides::default() }
    }

    fn command(image: Option<&ImageHealthCheck>, caller: &HealthOverrides) -> Option<String> {
        HealthCheck::merge(image, caller).unwrap().map(|check| check.command.join(" "))
    }

    #[test]
    fn the_caller_goes_before_the_image_and_that_before_the_defaults() {
        let (none, mine) = (caller(None), caller(Some("mine")));
        for (test, caller, expected) in [
            (None, &none, None),
            (None, &mine, Some("/bin/sh -c mine")),
            (Some(&["CMD", "probe", "-x"][..]), &none, Some("probe -x")),
            (Some(&["CMD", "probe"]), &mine, Some("/bin/sh -c mine")),
            (Some(&["CMD-SHELL", "a || b"]), &none, Some("/bin/sh -c a || b")),
            (Some(&["NONE"]), &none, None),
            (Some(&["NONE"]), &mine, Some("/bin/sh -c mine")),
            (Some(&[]), &none, None),
            (Some(&["CMD", "probe"]), &HealthOverrides { none: true, ..caller(None) }, None),
        ] {
            assert_eq!(command(test.map(image).as_ref(), caller).as_deref(), expected, "{test:?} {caller:?}");
        }
        let bash = ["/bin/bash", "-ec"].map(str::to_owned).to_vec();
        let with_shell = ImageHealthCheck { shell: bash, ..image(&["CMD-SHELL", "x"]) };
        assert_eq!(command(Some(&with_shell), &caller(None)).unwrap(), "/bin/bash -ec x");
        assert_eq!(command(Some(&with_shell), &caller(Some("y"))).unwrap(), "/bin/bash -ec y");
        let defaults = HealthCheck::merge(None, &caller(Some("x"))).unwrap().unwrap();
        assert_eq!((defaults.interval_ms, defaults.timeout_ms, defaults.retries), (30_000, 30_000, 3));
        assert_eq!((defaults.start_period_ms, defaults.start_interval_ms), (0, 5000));
        let written = ImageHealthCheck {
            interval_ns: 7_000_000_000,
            timeout_ns: 2_000_000_000,
            start_period_ns: 1_500_000,
            start_interval_ns: 1,
            retries: 9,
            ..image(&["CMD", "x"])
        };
        let check = HealthCheck::merge(Some(&written), &caller(None)).unwrap().unwrap();
        assert_eq!((check.interval_ms, check.timeout_ms, check.retries), (7000, 2000, 9));
        // An image cannot ask for a probe each nanosecond.
        assert_eq!((check.start_period_ms, check.start_interval_ms), (1, 100));
        let mine = HealthOverrides {
            interval: Some(Duration::from_millis(5)),
            retries: Some(1),
            start_period: Some(Duration::ZERO),
            ..caller(None)
        };
        let check = HealthCheck::merge(Some(&written), &mine).unwrap().unwrap();
        assert_eq!((check.interval_ms, check.timeout_ms, check.retries), (5, 2000, 1));
        assert_eq!((check.start_period_ms, check.command.as_slice()), (0, &["x".to_owned()][..]));
        let long = ImageHealthCheck { interval_ns: i64::MAX, ..image(&["CMD", "x"]) };
        let check = HealthCheck::merge(Some(&long), &caller(None)).unwrap().unwrap();
        assert_eq!(check.interval(), MOST);
    }

    #[test]
    fn what_cannot_be_a_check_is_refused() {
        let negative = ImageHealthCheck { timeout_ns: -1, ..image(&["CMD", "x"]) };
        let retries = ImageHealthCheck { retries: -1, ..image(&["CMD", "x"]) };
        for bad in [
            image(&["CMD"]),
            image(&["CMD-SHELL"]),
            image(&["CMD-SHELL", "a", "b"]),
            image(&["NONE", "x"]),
            image(&["curl", "x"]),
            image(&["CMD", ""]),
            image(&["CMD", "a\0"]),
            negative,
            retries,
        ] {
            let error = HealthCheck::merge(Some(&bad), &caller(None)).unwrap_err().to_string();
            assert!(error.contains("health check of the image"), "{bad:?}: {error}");
        }
        for bad in ["", "a\0b"] {
            let error = HealthCheck::merge(None, &caller(Some(bad))).unwrap_err().to_string();
            assert!(error.contains("--no-healthcheck"), "{error}");
        }
        let alone = HealthOverrides { retries: Some(2), ..caller(None) };
        assert_eq!(HealthCheck::merge(Some(&image(&["NONE"])), &alone), Err(SpecError::NoHealthCommand));
    }
}
