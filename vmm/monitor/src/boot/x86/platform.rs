//! How the monitor knows what a kernel reads: an MP table and device arguments, or ACPI.
//!
//! A device is never described both ways, so the choice is made before anything is written:
//!
//! 1. what the configuration says (`platform`): the command line takes it from the manifest beside
//!    its own kernel, and then nothing of the kernel is searched;
//! 2. an ELF section `.nelly.platform` that holds the word `mptable` or `acpi` and is not loaded,
//!    which our kernel's build adds: `objcopy --add-section .nelly.platform=FILE vmlinux`. Finding
//!    it takes three small reads;
//! 3. the kernel's own configuration (`CONFIG_IKCONFIG`), searched in the section `.rodata`: ACPI
//!    if it has `CONFIG_ACPI`, else an MP table if it has both `CONFIG_X86_MPPARSE` and
//!    `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`;
//! 4. of a bzImage that unpacks itself, which cannot be searched, its release: `-nelly` in it is
//!    our own build's local version, and an MP table;
//! 5. ACPI, which every stock kernel reads.

use std::io::Read;

use memchr::memmem;

use super::elf::{Elf, Range};
use crate::boot::source::Source;
use crate::sys::at_most;

/// How the machine describes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tables {
    /// An MP table, and `virtio_mmio.device=` arguments.
    MpTable,
    /// ACPI with reduced hardware.
    Acpi,
}

/// The section that says it in a word.
const SECTION: &str = ".nelly.platform";
/// `CONFIG_LOCALVERSION` of our own kernel.
const LOCAL_VERSION: &[u8] = b"-nelly";
const CONFIG_START: &[u8] = b"IKCFG_ST";
/// Most bytes that are searched for a kernel's configuration; Debian's `.rodata` has 6 MiB.
const SEARCH_MAX: u64 = 64 << 20;
const CHUNK: usize = 256 << 10;
/// Bytes of a configuration that are looked at together; its longest lines have some hundred.
const UNPACK: usize = 16 << 10;
/// Most bytes of a configuration, unpacked: Debian's has 130 KiB.
const CONFIG_MAX: u64 = 1 << 20;

/// What `elf` reads, if it says so.
pub(super) fn of(elf: &Elf, source: &Source<'_>) -> Option<Tables> {
    by_section(elf, source).or_else(|| by_config(elf, source))
}

/// What a kernel of this release reads, if it is one of ours.
pub(super) fn of_release(release: &[u8]) -> Option<Tables> {
    memmem::find(release, LOCAL_VERSION).map(|_| Tables::MpTable)
}

fn by_section(elf: &Elf, source: &Source<'_>) -> Option<Tables> {
    let range = elf.section(source, SECTION)?;
    let mut word = [0; 16];
    let word = &mut word[..usize::try_from(range.len).ok().filter(|&len| len <= 16)?];
    source.read(range.offset, word, "section").ok()?;
    match word.trim_ascii_end().split(|&byte| byte == 0 || byte == b'\n').next()? {
        b"mptable" => Some(Tables::MpTable),
        b"acpi" => Some(Tables::Acpi),
        _ => None,
    }
}

fn by_config(elf: &Elf, source: &Source<'_>) -> Option<Tables> {
    of_config(&mut config(elf, source)?)
}

/// Whether the kernel's own configuration has this line.
pub(super) fn has_line(elf: &Elf, source: &Source<'_>, line: &str) -> bool {
    let Some(mut config) = config(elf, source) else { return false };
    let mut text = b"\n".to_vec();
    // What can be read of a damaged one counts.
    let _ = config.read_to_end(&mut text);
    memmem::find(&text, format!("\n{line}\n").as_bytes()).is_some()
}

/// The kernel's own configuration, unpacked.
fn config<'a>(elf: &Elf, source: &'a Source<'_>) -> Option<impl Read + 'a> {
    let range = elf.section(source, ".rodata")?;
    let start = find(source, range)?;
    let end = range.offset + range.len;
    let packed = source.reader(start, end.saturating_sub(start));
    let reader = std::io::BufReader::with_capacity(UNPACK, packed);
    Some(flate2::bufread::GzDecoder::new(reader).take(CONFIG_MAX))
}

/// Reads a configuration until it is clear what it says. Whatever can be read of it counts: a
/// damaged configuration must not keep a kernel from booting.
fn of_config(config: &mut impl Read) -> Option<Tables> {
    let (mut buffer, mut filled, mut found) = ([0; UNPACK], 1, Options::default());
    // Every line lies between two of these.
    buffer[0] = b'\n';
    loop {
        let read = config.read(&mut buffer[filled..]).unwrap_or(0);
        if read == 0 {
            // The last line may lack its end, and a line that fills the buffer is none of a
            // configuration.
            found.take(&[&buffer[..filled], b"\n"].concat());
            return found.platform(true);
        }
        filled += read;
        let whole = buffer[..filled].iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
        found.take(&buffer[..=whole]);
        if let Some(platform) = found.platform(false) {
            return Some(platform);
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

/// What of a configuration decides.
#[derive(Default)]
struct Options {
    acpi: bool,
    no_acpi: bool,
    mp_table: bool,
    arguments: bool,
}

impl Options {
    /// Looks at whole lines, with the line feed before the first of them.
    fn take(&mut self, lines: &[u8]) {
        for (found, line) in [
            (&mut self.acpi, "\nCONFIG_ACPI=y\n"),
            (&mut self.no_acpi, "\n# CONFIG_ACPI is not set\n"),
            (&mut self.mp_table, "\nCONFIG_X86_MPPARSE=y\n"),
            (&mut self.arguments, "\nCONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n"),
        ] {
            *found = *found || memmem::find(lines, line.as_bytes()).is_some();
        }
    }

    /// `ended`: nothing comes any more, and what is not named is off.
    fn platform(&self, ended: bool) -> Option<Tables> {
        match self {
            Self { acpi: true, .. } => Some(Tables::Acpi),
            Self { mp_table: true, arguments: true, no_acpi, .. } if *no_acpi || ended => {
                Some(Tables::MpTable)
            }
            _ => None,
        }
    }
}

/// Where the packed configuration begins in the file.
fn find(source: &Source<'_>, range: Range) -> Option<u64> {
    let finder = memmem::Finder::new(CONFIG_START);
    let end = range.offset.checked_add(range.len.min(SEARCH_MAX))?;
    let mut buffer = vec![0; CHUNK];
    let mut at = range.offset;
    while at < end {
        let len = at_most(end - at, CHUNK);
        let chunk = &mut buffer[..len];
        source.read(at, chunk, "section").ok()?;
        if let Some(found) = finder.find(chunk) {
            return at.checked_add((found + CONFIG_START.len()) as u64);
        }
        // The mark may lie across two chunks.
        let step = len.saturating_sub(CONFIG_START.len() - 1);
        if step == 0 || len < CHUNK {
            return None;
        }
        at += step as u64;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MP_TABLE: &str = "CONFIG_X86_MPPARSE=y";
    const ARGUMENTS: &str = "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y";
    const ACPI: &str = "CONFIG_ACPI=y";
    const NO_ACPI: &str = "# CONFIG_ACPI is not set";

    fn of_text(text: &str) -> Option<Tables> {
        of_config(&mut text.as_bytes())
    }

    #[test]
    fn a_configuration_says_what_its_kernel_reads() {
        let filler = "CONFIG_OTHER=\"twenty-five characters\"\n".repeat(1000);
        for (lines, platform) in [
            (vec![], None),
            (vec![MP_TABLE, ARGUMENTS], Some(Tables::MpTable)),
            (vec![NO_ACPI, ARGUMENTS, MP_TABLE], Some(Tables::MpTable)),
            (vec![MP_TABLE, ARGUMENTS, ACPI], Some(Tables::Acpi)),
            (vec![MP_TABLE], None),
            (vec![ARGUMENTS, NO_ACPI], None),
            (vec!["XCONFIG_ACPI=y", "CONFIG_ACPI=yes", " CONFIG_ACPI=y"], None),
        ] {
            for between in ["\n", &format!("\n{filler}")] {
                assert_eq!(of_text(&lines.join(between)), platform, "{lines:?}");
                assert_eq!(
                    of_text(&format!("{filler}{}\n{filler}", lines.join(between))),
                    platform,
                    "{lines:?}"
                );
            }
        }
    }

    #[test]
    fn nothing_is_read_behind_what_decides() {
        for (head, platform) in [
            (ACPI.to_owned(), Tables::Acpi),
            (format!("{MP_TABLE}\n{NO_ACPI}\n{ARGUMENTS}"), Tables::MpTable),
        ] {
            let rest = "CONFIG_MORE=y\n".repeat(10_000);
            let text = format!("{head}\n{rest}");
            let mut left = text.as_bytes();
            assert_eq!(of_config(&mut left), Some(platform));
            assert!(left.len() > rest.len() - UNPACK);
        }
    }

    #[test]
    fn a_line_without_end_is_no_configuration() {
        assert_eq!(of_text(&"x".repeat(3 * UNPACK)), None);
    }

    proptest! {
        /// However it is cut into reads, it says what its lines say.
        #[test]
        fn reads_of_any_size_find_the_same(
            picks in prop::collection::vec((0usize..6, 0usize..3000), 0..40),
            sizes in prop::collection::vec(1usize..20_000, 1..20),
        ) {
            let pool = [MP_TABLE, ARGUMENTS, ACPI, NO_ACPI, "CONFIG_A=y", "# CONFIG_B is not set"];
            let lines: Vec<String> = picks.iter().map(|&(pick, len)| {
                if len > 2000 { "y".repeat(len) } else { pool[pick].to_owned() }
            }).collect();
            let text = lines.join("\n");
            let has = |line: &str| lines.iter().any(|have| have == line);
            let wanted = if has(ACPI) && !(has(NO_ACPI) && has(MP_TABLE) && has(ARGUMENTS)) {
                Some(Tables::Acpi)
            } else if has(ACPI) {
                // Contradicts itself: whichever comes first.
                None
            } else if has(MP_TABLE) && has(ARGUMENTS) {
                Some(Tables::MpTable)
            } else {
                None
            };
            let mut reader = Pieces { text: text.as_bytes(), sizes: sizes.iter().cycle() };
            let found = of_config(&mut reader);
            if has(ACPI) && wanted.is_none() {
                prop_assert!(found.is_some());
            } else {
                prop_assert_eq!(found, wanted);
            }
        }
    }

    struct Pieces<'a, S> {
        text: &'a [u8],
        sizes: S,
    }

    impl<'a, S: Iterator<Item = &'a usize>> Read for Pieces<'_, S> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let size = self.sizes.next().copied().unwrap_or(1);
            let len = buffer.len().min(size).min(self.text.len());
            buffer[..len].copy_from_slice(&self.text[..len]);
            self.text = &self.text[len..];
            Ok(len)
        }
    }
}
