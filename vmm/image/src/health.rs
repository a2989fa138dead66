//! The health check of an image: docker's extension `Healthcheck` of the configuration, which the
//! OCI specification reserves and leaves out.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The configuration of an image as it is stored, for what [`crate::ImageConfiguration`] leaves
/// out. It is parsed only when that is asked for.
#[derive(Clone, Debug, Default)]
pub struct RawConfig(Arc<Vec<u8>>);

/// A health check as an image says it. Nothing of it is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageHealthCheck {
    /// `NONE`, `CMD` and a command, or `CMD-SHELL` and a line for the shell; empty if it says
    /// nothing.
    pub test: Vec<String>,
    /// Time between two probes, in nanoseconds; 0 if it says nothing, as for the next three.
    pub interval_ns: i64,
    /// How long a probe may take.
    pub timeout_ns: i64,
    /// How long failures do not count after the container's start.
    pub start_period_ns: i64,
    /// Time between two probes in that time.
    pub start_interval_ns: i64,
    /// How many failures in a row make it unhealthy; 0 if it says nothing.
    pub retries: i64,
    /// The shell of `CMD-SHELL`, if the image names another than `/bin/sh -c`; else empty.
    pub shell: Vec<String>,
}

/// What the image says of its health check cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the image's health check cannot be read")]
pub struct HealthCheckError(#[from] serde_json::Error);

#[derive(Deserialize)]
struct Outer {
    config: Option<Inner>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inner {
    healthcheck: Option<Written>,
    shell: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Written {
    test: Option<Vec<String>>,
    #[serde(default)]
    interval: i64,
    #[serde(default)]
    timeout: i64,
    #[serde(default)]
    start_period: i64,
    #[serde(default)]
    start_interval: i64,
    #[serde(default)]
    retries: i64,
}

impl RawConfig {
    pub(crate) fn new(text: Vec<u8>) -> Self {
        Self(Arc::new(text))
    }

    /// The text.
    pub(crate) fn text(&self) -> &[u8] {
        &self.0
    }

    /// The image's health check, if it says one.
    ///
    /// # Errors
    /// It has another form: the image can be run without it.
    pub fn health_check(&self) -> Result<Option<ImageHealthCheck>, HealthCheckError> {
        if self.0.is_empty() {
            // A plain directory has no configuration.
            return Ok(None);
        }
        let outer: Outer = serde_json::from_slice(&self.0)?;
        let Some(Inner { healthcheck: Some(written), shell }) = outer.config else { return Ok(None) };
        Ok(Some(ImageHealthCheck {
            test: written.test.unwrap_or_default(),
            interval_ns: written.interval,
            timeout_ns: written.timeout,
            start_period_ns: written.start_period,
            start_interval_ns: written.start_interval,
            retries: written.retries,
            shell: shell.unwrap_or_default(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<ImageHealthCheck>, HealthCheckError> {
        RawConfig::new(text.as_bytes().to_vec()).health_check()
    }

    #[test]
    fn what_docker_writes_is_read() {
        let whole = r#"{"os":"linux","config":{"Cmd":["x"],"Shell":["/bin/bash","-c"],"Healthcheck":{
            "Test":["CMD-SHELL","curl -f localhost"],"Interval":5000000000,"Timeout":1000000000,
            "StartPeriod":2000000000,"StartInterval":500000000,"Retries":4}}}"#;
        let check = read(whole).unwrap().unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "curl -f localhost"]);
        assert_eq!((check.interval_ns, check.timeout_ns), (5_000_000_000, 1_000_000_000));
        assert_eq!((check.start_period_ns, check.start_interval_ns), (2_000_000_000, 500_000_000));
        assert_eq!((check.retries, check.shell), (4, vec!["/bin/bash".to_owned(), "-c".to_owned()]));
        let little = read(r#"{"config":{"Healthcheck":{"Test":["NONE"]}}}"#).unwrap().unwrap();
        assert_eq!((little.test, little.interval_ns, little.retries), (vec!["NONE".to_owned()], 0, 0));
        for none in ["", "{}", r#"{"config":null}"#, r#"{"config":{}}"#, r#"{"config":{"Healthcheck":null}}"#]
        {
            assert_eq!(read(none).unwrap(), None, "{none}");
        }
    }

    #[test]
    fn what_has_another_form_is_an_error() {
        for bad in [
            r#"{"config":{"Healthcheck":{"Test":"curl"}}}"#,
            r#"{"config":{"Healthcheck":{"Interval":"5s"}}}"#,
            r#"{"config":{"Healthcheck":{"Retries":1e99}}}"#,
            r#"{"config":{"Healthcheck":[]}}"#,
        ] {
            assert!(read(bad).unwrap_err().to_string().contains("health check"), "{bad}");
        }
    }
}
