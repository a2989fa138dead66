//! How values are written.

use std::net::Ipv4Addr;
use std::path::PathBuf;

/// vCPUs of a machine of Nelly at most.
const CPUS_MAX: u32 = 32;
/// The units of sizes, as powers of two.
const UNITS: &[(&str, u32)] = &[("M", 20), ("G", 30), ("T", 40)];
/// The unit of a number without one.
const BARE: u32 = 30;

/// A switch: a whole number, on if it is more than zero.
///
/// # Errors
/// It is no such number.
pub(crate) fn switch(text: &str) -> Result<bool, String> {
    match text.parse::<u64>() {
        Ok(number) => Ok(number > 0),
        Err(_) => Err("is neither 0 nor a number above it, such as 1".to_owned()),
    }
}

/// A number of vCPUs, 1 to 32.
///
/// # Errors
/// It is none.
pub(crate) fn cpus(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=CPUS_MAX).contains(number));
    number.ok_or_else(|| format!("is no number of vCPUs, 1 to {CPUS_MAX}"))
}

/// Bytes of `4`, which are 4 GiB, of `512M`, `4G` or `1T`, which are binary units; `GB` and `GiB`
/// mean the same as `G`.
///
/// # Errors
/// It is none of these, zero, or does not fit into 64 bits.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let form = || "is no size: write a whole number of GiB, such as 4, or one with M, G or T".to_owned();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let upper = unit.to_ascii_uppercase();
    let letter = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
    let shift = if unit.is_empty() {
        BARE
    } else {
        UNITS.iter().find(|(name, _)| *name == letter).map(|(_, shift)| *shift).ok_or_else(form)?
    };
    let number: u64 = number.parse().map_err(|_| form())?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("is nothing: at least 1 is needed".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("does not fit into 64 bits".to_owned()),
    }
}

/// Bytes as [`size`] and the flags of Nelly read them.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let unit = UNITS.iter().rev().find(|(_, shift)| bytes.trailing_zeros() >= *shift);
    match unit {
        Some((name, shift)) => format!("{}{name}", bytes >> shift),
        // No value of a variable has less than a whole unit.
        None => bytes.to_string(),
    }
}

/// A port of the host: `5555` on loopback, `0.0.0.0:5555` wherever it says.
///
/// # Errors
/// It is none.
pub(crate) fn host_port(text: &str) -> Result<(Ipv4Addr, u16), String> {
    let form = || "is no port: write 1 to 65535, perhaps after an IPv4 address and a colon".to_owned();
    let (bind, port) = match text.split_once(':') {
        Some((bind, port)) => (bind.parse().map_err(|_| form())?, port),
        None => (Ipv4Addr::LOCALHOST, text),
    };
    Ok((bind, port_number(port).ok_or_else(form)?))
}

/// A port without signs and leading zeros.
fn port_number(text: &str) -> Option<u16> {
    let plain = text.starts_with(|c: char| matches!(c, '1'..='9'));
    text.parse().ok().filter(|_| plain)
}

/// `ext:int;...`: ports of the host and the guest's they lead to, each perhaps after an IPv4
/// address of the host and a colon.
///
/// # Errors
/// One of them is none; it is named.
pub(crate) fn redirects(text: &str) -> Result<Vec<(Ipv4Addr, u16, u16)>, String> {
    let one = |word: &str| {
        let form = || {
            format!(
                "{word:?} is no HOST:GUEST of two ports, such as 8080:80 (several are divided by semicolons)"
            )
        };
        let (host, guest) = word.rsplit_once(':').ok_or_else(form)?;
        let (bind, host) = host_port(host).map_err(|_| form())?;
        Ok((bind, host, port_number(guest).ok_or_else(form)?))
    };
    text.split(';').map(one).collect()
}

/// `host|guest$...`: directories of the host and where they are in the guest.
///
/// # Errors
/// One of them is none; it is named.
pub(crate) fn mounts(text: &str) -> Result<Vec<(PathBuf, String)>, String> {
    let one = |word: &str| {
        let Some((host, guest)) = word.split_once('|') else {
            return Err(format!(
                "{word:?} is no HOST|GUEST of two directories (several are divided by dollar signs)"
            ));
        };
        if host.is_empty() || guest.contains('|') {
            return Err(format!("{word:?} has not one directory of this host and one of the guest"));
        }
        if host.chars().any(char::is_control) || host.ends_with(":ro") || host.ends_with(":rw") {
            return Err(format!(
                "{host:?} cannot be shared: it has control characters, or ends in :ro or :rw"
            ));
        }
        let inner = guest.strip_prefix('/').filter(|rest| !rest.is_empty());
        let plain = inner.is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
        if !plain || guest.chars().any(char::is_control) {
            return Err(format!(
                "{guest:?} is no place in the guest: it is absolute, not /, has no . or .. and does not end in /"
            ));
        }
        Ok((PathBuf::from(host), guest.to_owned()))
    };
    text.split('$').map(one).collect()
}

/// The first address of `10.0.2`, whose last byte is left out.
///
/// # Errors
/// It is not of that form.
pub(crate) fn prefix(text: &str) -> Result<Ipv4Addr, String> {
    let bytes: Option<Vec<u8>> = text.split('.').map(|byte| byte.parse().ok()).collect();
    match bytes.as_deref() {
        Some(&[first, second, third]) => Ok(Ipv4Addr::new(first, second, third, 0)),
        _ => Err("is no prefix of three bytes, such as 10.0.2".to_owned()),
    }
}

/// An IPv4 address in the network of 256 addresses that begins at `prefix`.
///
/// # Errors
/// It is none, or lies elsewhere.
pub(crate) fn address(text: &str, prefix: Ipv4Addr) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|_| "is no IPv4 address".to_owned())?;
    if address.octets()[..3] == prefix.octets()[..3] {
        Ok(address)
    } else {
        Err(format!("is not in {prefix}/24, where DEFAULT_NETWORK_PREFIX puts the machine"))
    }
}

/// The name of a file below a directory.
///
/// # Errors
/// It is empty, absolute or leads out of the directory.
pub(crate) fn file_name(text: &str) -> Result<PathBuf, String> {
    let plain = text.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if plain && !text.chars().any(char::is_control) {
        Ok(text.into())
    } else {
        Err("is no name of a file below DEFAULT_DIR_IMAGE".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_switches() {
        for (text, on) in [("0", Some(false)), ("1", Some(true)), ("7", Some(true)), ("00", Some(false))] {
            assert_eq!(switch(text).ok(), on, "{text}");
        }
        for bad in ["", "-1", "yes", "1 ", "0x1"] {
            assert!(switch(bad).unwrap_err().contains("such as 1"), "{bad}");
        }
        assert_eq!((cpus("1"), cpus("32")), (Ok(1), Ok(32)));
        for bad in ["0", "33", "2.5", "", "-1", "many"] {
            assert!(cpus(bad).unwrap_err().contains("1 to 32"), "{bad}");
        }
    }

    #[test]
    fn bare_numbers_are_gibibytes() {
        let table = [
            ("2", 2 << 30, "2G"),
            ("16", 16 << 30, "16G"),
            ("512M", 512 << 20, "512M"),
            ("1536m", 1536 << 20, "1536M"),
            ("2GB", 2 << 30, "2G"),
            ("2GiB", 2 << 30, "2G"),
            ("1T", 1 << 40, "1T"),
            ("1024", 1 << 40, "1T"),
        ];
        for (text, bytes, shown) in table {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(show_size(bytes), shown);
            assert_eq!(size(shown), Ok(bytes));
        }
        for (bad, what) in [
            ("", "whole number"),
            ("G", "whole number"),
            ("1.5G", "whole number"),
            ("2K", "whole number"),
            ("2 G", "whole number"),
            ("-2", "whole number"),
            ("0", "at least 1"),
            ("0M", "at least 1"),
            ("17179869184", "64 bits"),
            ("99999999999999999999", "whole number"),
        ] {
            assert!(size(bad).unwrap_err().contains(what), "{bad}: {:?}", size(bad));
        }
    }

    #[test]
    fn ports_are_on_loopback_unless_asked() {
        let (here, all) = (Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED);
        assert_eq!(host_port("5555"), Ok((here, 5555)));
        assert_eq!(host_port("0.0.0.0:22"), Ok((all, 22)));
        for bad in ["", "0", "65536", "+80", "080", "ssh", ":80", "::1:80", "127.0.0.1:", "1:2:3"] {
            assert!(host_port(bad).unwrap_err().contains("1 to 65535"), "{bad}");
        }
        assert_eq!(redirects("8080:80"), Ok(vec![(here, 8080, 80)]));
        assert_eq!(redirects("6443:6443;0.0.0.0:30443:443"), Ok(vec![(here, 6443, 6443), (all, 30443, 443)]));
        for (bad, named) in [
            ("", "\"\""),
            ("80", "\"80\""),
            ("8080:80;", "\"\""),
            ("8080:80,8081:81", "\"8080:80,8081:81\""),
            ("8080:80; 81:81", "\" 81:81\""),
            ("8080:0", "\"8080:0\""),
            ("a:80", "\"a:80\""),
            ("8080:80/udp", "\"8080:80/udp\""),
            ("70000:80", "\"70000:80\""),
        ] {
            let error = redirects(bad).unwrap_err();
            assert!(error.starts_with(named) && error.contains("HOST:GUEST"), "{bad}: {error}");
        }
    }

    #[test]
    fn mounts_are_pairs_of_directories() {
        let pair = |host: &str, guest: &str| (PathBuf::from(host), guest.to_owned());
        assert_eq!(mounts("/srv|/data"), Ok(vec![pair("/srv", "/data")]));
        assert_eq!(
            mounts("/srv a|/data$./b|/mnt/b c"),
            Ok(vec![pair("/srv a", "/data"), pair("./b", "/mnt/b c")])
        );
        for (bad, what) in [
            ("", "HOST|GUEST"),
            ("/srv", "HOST|GUEST"),
            ("/srv:/data", "HOST|GUEST"),
            ("|/data", "not one directory"),
            ("/srv|/data|ro", "not one directory"),
            ("/srv|/data$", "HOST|GUEST"),
            ("/srv|data", "no place in the guest"),
            ("/srv|", "no place in the guest"),
            ("/srv|/", "no place in the guest"),
            ("/srv|/a/../b", "no place in the guest"),
            ("/srv|/a//b", "no place in the guest"),
            ("/srv|/a\nb", "no place in the guest"),
            ("/srv:ro|/data", "ends in :ro"),
            ("/s\nrv|/data", "control characters"),
        ] {
            let error = mounts(bad).unwrap_err();
            assert!(error.contains(what), "{bad}: {error}");
        }
    }

    #[test]
    fn addresses_are_in_the_prefix() {
        let network = Ipv4Addr::new(10, 9, 8, 0);
        assert_eq!(prefix("10.9.8"), Ok(network));
        for bad in ["", "10.9", "10.9.8.0", "10.9.256", "10..8", "10.9.8/24", "10.9.x.8"] {
            assert!(prefix(bad).unwrap_err().contains("10.0.2"), "{bad}");
        }
        assert_eq!(address("10.9.8.15", network), Ok(Ipv4Addr::new(10, 9, 8, 15)));
        assert!(address("10.9.7.15", network).unwrap_err().contains("10.9.8.0/24"));
        assert!(address("fd00::1", network).unwrap_err().contains("IPv4"));
    }

    #[test]
    fn files_stay_in_their_directory() {
        assert_eq!(file_name("final/Image.gz"), Ok("final/Image.gz".into()));
        for bad in ["", "/vmlinuz", "../vmlinuz", "a//b", "a/", "a\nb", "."] {
            assert!(file_name(bad).unwrap_err().contains("DEFAULT_DIR_IMAGE"), "{bad}");
        }
    }
}
