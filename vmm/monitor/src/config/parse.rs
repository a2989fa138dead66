//! The JSON form, read field by field so that every refusal names its field.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{ConfigError, MachineConfig};

/// The object's fields that were not taken yet.
struct Fields(Map<String, Value>);

impl Fields {
    /// A field that may be missing or null.
    fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ConfigError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => field(name, value).map(Some),
        }
    }

    /// A field that stands for its default when it is missing.
    fn or_default<T: DeserializeOwned + Default>(&mut self, name: &str) -> Result<T, ConfigError> {
        Ok(self.optional(name)?.unwrap_or_default())
    }

    /// A list that may be missing; a refusal names the entry.
    fn list<T: DeserializeOwned>(&mut self, name: &str) -> Result<Vec<T>, ConfigError> {
        let values: Vec<Value> = self.or_default(name)?;
        let entry = |(index, value)| field(&format!("{name}[{index}]"), value);
        values.into_iter().enumerate().map(entry).collect()
    }

    /// A field that must be there.
    fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ConfigError> {
        self.optional(name)?.ok_or_else(|| ConfigError::new(name, "is missing".into()))
    }
}

fn field<T: DeserializeOwned>(name: &str, value: Value) -> Result<T, ConfigError> {
    serde_json::from_value(value).map_err(|error| ConfigError::new(name, error.to_string()))
}

/// Reads a machine.
pub(super) fn machine(text: &[u8]) -> Result<MachineConfig, ConfigError> {
    let value: Value = serde_json::from_slice(text)
        .map_err(|error| ConfigError::new("(file)", format!("is not JSON: {error}")))?;
    from_value(value)
}

impl<'de> Deserialize<'de> for MachineConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_value(Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

fn from_value(value: Value) -> Result<MachineConfig, ConfigError> {
    let Value::Object(map) = value else {
        return Err(ConfigError::new("(file)", "is not a JSON object".into()));
    };
    let mut fields = Fields(map);
    // First, so that a config of another version is refused for that and not for a field.
    let schema: u32 = fields.required("schema")?;
    if schema != super::SCHEMA {
        let reason = format!("version {schema} is unknown; this monitor supports {}", super::SCHEMA);
        return Err(ConfigError::new("schema", reason));
    }
    let config = MachineConfig {
        schema,
        memory_bytes: fields.or_default("memory_bytes")?,
        hotplug_bytes: fields.or_default("hotplug_bytes")?,
        give_back: fields.or_default("give_back")?,
        cpus: fields.or_default("cpus")?,
        nested: fields.or_default("nested")?,
        kernel: fields.required("kernel")?,
        initrd: fields.optional("initrd")?,
        immutable_images: fields.or_default("immutable_images")?,
        command_line: fields.or_default("command_line")?,
        boot_protocol: fields.or_default("boot_protocol")?,
        platform: fields.or_default("platform")?,
        disks: fields.list("disks")?,
        rng: fields.or_default("rng")?,
        console: fields.or_default("console")?,
        serial: fields.or_default("serial")?,
        log_bytes: fields.or_default("log_bytes")?,
        vsock: fields.optional("vsock")?,
        networks: fields.list("networks")?,
        shares: fields.list("shares")?,
        spare_slots: fields.or_default("spare_slots")?,
        on_reset: fields.or_default("on_reset")?,
        time_limit_ms: fields.optional("time_limit_ms")?,
        confine: fields.or_default("confine")?,
        monitor_user: fields.optional("monitor_user")?,
    };
    if let Some(name) = fields.0.keys().next() {
        return Err(ConfigError::new(name.clone(), "is not a field of a machine".into()));
    }
    config.validate()?;
    Ok(config)
}
