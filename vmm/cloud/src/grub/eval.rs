//! Carries a script out, as far as it decides what boots.

use std::collections::HashMap;
use std::rc::Rc;

use nelly_disk::number::fits;

use super::syntax::{Block, Command, parse};
use super::test_command::test;
use super::words::{Piece, Word};
use super::{Devices, FileKind, GrubEntry, GrubError, Place, SearchBy};
use crate::bls::{self, BlsEntry};
use crate::grubenv::{self, Variables};

/// Most commands that are carried out.
const STEPS_MAX: u32 = 100_000;
/// Deepest functions, files and menus in one another.
const DEPTH_MAX: u32 = 20;
/// Most entries of all menus.
const ENTRIES_MAX: usize = 256;
/// Most bytes of a variable.
const VALUE_MAX: usize = 4096;
/// Most characters of all words of a command.
const WORDS_MAX: usize = 64 << 10;
/// Most bytes of a script that is read.
const SCRIPT_MAX: usize = 1 << 20;
/// Most variables.
const VARIABLES_MAX: usize = 512;
/// Most unknown commands that are named.
const UNKNOWN_MAX: usize = 20;

/// Commands of pictures, sounds, modules and terminals, and whether they succeed here.
const NOTHING: &[(&str, bool)] = &[
    ("insmod", true),
    ("rmmod", true),
    ("echo", true),
    ("export", true),
    ("terminal_input", true),
    ("terminal_output", true),
    ("terminal", true),
    ("serial", true),
    ("loadfont", false),
    ("background_color", true),
    ("background_image", false),
    ("play", true),
    ("keystatus", false),
    ("sleep", true),
    ("hwmatch", false),
    ("save_env", true),
    ("clear", true),
    ("initrdfail", true),
    ("fwsetup", false),
    ("fwload", false),
    ("gettext", true),
    ("nativedisk", true),
    ("keymap", true),
    ("password", true),
    ("password_pbkdf2", true),
    ("module", true),
    ("normal", true),
    ("true", true),
    (":", true),
    ("false", false),
    ("tpm_record_pcrs", true),
    ("increment", true),
    ("cpuid", true),
];

/// What a configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Menu {
    /// The entries of all menus, those of a submenu in its place.
    pub entries: Vec<GrubEntry>,
    /// Which one is the default.
    pub chosen: Option<usize>,
    /// Commands that are not known, each with its line.
    pub unknown: Vec<String>,
    /// Whether entries came from files of the Boot Loader Specification.
    pub bls: bool,
}

/// Evaluates the configuration at `path` of `device`, and every entry of it.
///
/// # Errors
/// [`GrubError`].
pub fn evaluate(devices: &dyn Devices, device: &str, path: &str) -> Result<Menu, GrubError> {
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let mut state = State::new(devices);
    for name in [
        "feature_menuentry_id",
        "feature_timeout_style",
        "feature_all_video_module",
        "feature_default_font_path",
        "feature_nativedisk_cmd",
        "feature_chainloader_bpb",
        "feature_ntldr",
        "feature_platform_search_hint",
        "feature_200_final",
    ] {
        state.set(name, "y");
    }
    for (name, value) in [("grub_platform", "efi"), ("grub_cpu", "x86_64"), ("root", device)] {
        state.set(name, value);
    }
    state.set("prefix", &format!("({device}){directory}"));
    state.set("cmdpath", &format!("({device}){directory}"));
    state.file(&format!("({device}){path}"), true)?;
    let wanted = state.variables.get("default").cloned().unwrap_or_default();
    let mut menu = Menu {
        bls: state.entries.iter().any(|entry| matches!(entry.boots, Boots::Bls(_))),
        ..Menu::default()
    };
    let chosen = state.flatten(&wanted, &mut menu)?;
    menu.chosen = chosen.or_else(|| menu.entries.iter().position(|entry| entry.linux.is_some()));
    menu.unknown = state.unknown;
    Ok(menu)
}

/// An entry of a menu, not looked into yet.
#[derive(Clone)]
struct Item {
    title: String,
    id: String,
    boots: Boots,
}

#[derive(Clone)]
enum Boots {
    Script { body: Rc<Block>, words: Vec<String>, submenu: bool },
    Bls(Box<BlsEntry>),
}

#[derive(Clone)]
struct State<'a> {
    devices: &'a dyn Devices,
    variables: Variables,
    functions: HashMap<String, Rc<Block>>,
    words: Vec<String>,
    entries: Vec<Item>,
    found: GrubEntry,
    unknown: Vec<String>,
    steps: u32,
    depth: u32,
    returned: bool,
}

impl<'a> State<'a> {
    fn new(devices: &'a dyn Devices) -> Self {
        Self {
            devices,
            variables: Variables::new(),
            functions: HashMap::new(),
            words: Vec::new(),
            entries: Vec::new(),
            found: GrubEntry::default(),
            unknown: Vec::new(),
            steps: 0,
            depth: 0,
            returned: false,
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        if self.variables.len() < VARIABLES_MAX && value.len() <= VALUE_MAX {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }

    /// A path as a script has it: `(device)/path`, or one on the device `$root`.
    fn place(&self, text: &str) -> Place {
        let (device, path) = match text.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (self.variables.get("root").map_or("", String::as_str), text),
        };
        Place { device: device.to_owned(), path: path.to_owned() }
    }

    fn kind(&self, text: &str) -> Option<FileKind> {
        let place = self.place(text);
        self.devices.kind(&place.device, &place.path)
    }

    /// Reads a script and carries it out; with `menu` its entries replace those that there are.
    fn file(&mut self, text: &str, menu: bool) -> Result<bool, GrubError> {
        let place = self.place(text);
        let Some(bytes) = self.devices.read(&place.device, &place.path).filter(|b| b.len() <= SCRIPT_MAX)
        else {
            return Ok(false);
        };
        self.cost(bytes.len() / 64)?;
        let block = parse(&String::from_utf8_lossy(&bytes))?;
        self.deeper()?;
        let before = if menu { std::mem::take(&mut self.entries) } else { Vec::new() };
        if menu {
            let directory = place.path.rsplit_once('/').map_or("", |(directory, _)| directory);
            self.set("config_file", &format!("({}){}", place.device, place.path));
            self.set("config_directory", &format!("({}){directory}", place.device));
        }
        let status = self.block(&block)?;
        self.returned = false;
        if menu && self.entries.is_empty() {
            self.entries = before;
        }
        self.depth -= 1;
        Ok(status)
    }

    fn deeper(&mut self) -> Result<(), GrubError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(GrubError {
                line: 0,
                what: "files, functions or menus too deep in one another".to_owned(),
            });
        }
        Ok(())
    }

    fn block(&mut self, block: &Block) -> Result<bool, GrubError> {
        let mut status = true;
        for command in block {
            status = self.command(command)?;
            self.set("?", if status { "0" } else { "1" });
            if self.returned {
                break;
            }
        }
        Ok(status)
    }

    /// Work that is as much as so many commands: bytes that are read, mostly.
    fn cost(&mut self, commands: usize) -> Result<(), GrubError> {
        self.steps = self.steps.saturating_add(fits(commands.min(1 << 20), "it has 20 bits"));
        self.step(0)
    }

    fn step(&mut self, line: u32) -> Result<(), GrubError> {
        self.steps = self.steps.saturating_add(1);
        if self.steps > STEPS_MAX {
            return Err(GrubError { line, what: format!("more than {STEPS_MAX} commands are carried out") });
        }
        Ok(())
    }

    fn command(&mut self, command: &Command) -> Result<bool, GrubError> {
        match command {
            Command::Simple { words, line } => {
                self.step(*line)?;
                let words = self.expand(words);
                self.simple(&words, *line)
            }
            Command::Entry { submenu, words, body, line } => {
                self.step(*line)?;
                let words = self.expand(words);
                Ok(self.entry(&words, *submenu, body))
            }
            Command::If { cases, otherwise } => {
                self.step(0)?;
                for (condition, body) in cases {
                    if self.block(condition)? {
                        return self.block(body);
                    }
                }
                self.block(otherwise)
            }
            Command::For { name, words, body } => {
                let mut status = true;
                for word in self.expand(words) {
                    self.step(0)?;
                    self.set(name, &word);
                    status = self.block(body)?;
                }
                Ok(status)
            }
            Command::Loop { until, condition, body } => {
                while self.block(condition)? != *until && !self.returned {
                    self.step(0)?;
                    self.block(body)?;
                }
                Ok(true)
            }
            Command::Function { name, body } => {
                self.step(0)?;
                self.functions.insert(name.clone(), Rc::clone(body));
                Ok(true)
            }
        }
    }

    fn value(&self, name: &str) -> String {
        match name {
            "@" | "*" => self.words.join(" "),
            "#" => self.words.len().to_string(),
            _ => match name.parse::<usize>() {
                Ok(number) => {
                    number.checked_sub(1).and_then(|at| self.words.get(at)).cloned().unwrap_or_default()
                }
                Err(_) => self.variables.get(name).cloned().unwrap_or_default(),
            },
        }
    }

    /// Words with the values of their variables; outside of quotes a value is cut at its spaces.
    fn expand(&self, words: &[Word]) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        let mut left = WORDS_MAX;
        for word in words {
            let mut current = word.quoted.then(String::new);
            for piece in &word.pieces {
                let (value, split) = match piece {
                    Piece::Text(text) => (text.clone(), false),
                    Piece::Variable { name, quoted } => (self.value(name), !quoted),
                };
                // Too much is cut, as a command line is.
                let value: String = value.chars().take(left).collect();
                left -= value.chars().count();
                if !split {
                    current.get_or_insert_default().push_str(&value);
                    continue;
                }
                for (index, part) in value.split(char::is_whitespace).enumerate() {
                    if index > 0 {
                        out.extend(current.take());
                    }
                    if !part.is_empty() {
                        current.get_or_insert_default().push_str(part);
                    }
                }
            }
            out.extend(current);
        }
        out
    }

    fn entry(&mut self, words: &[String], submenu: bool, body: &Rc<Block>) -> bool {
        let (mut title, mut id, mut rest) = (None, None, Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--class" | "--users" | "--hotkey" | "--source" => _ = words.next(),
                "--id" => id = words.next().cloned(),
                "--unrestricted" => {}
                _ if word.starts_with("--id=") => id = Some(word[5..].to_owned()),
                _ if word.starts_with("--") => {}
                _ if title.is_none() => title = Some(word.clone()),
                _ => rest.push(word.clone()),
            }
        }
        let Some(title) = title.filter(|_| self.entries.len() < ENTRIES_MAX) else { return false };
        let id = id.unwrap_or_else(|| title.clone());
        let boots = Boots::Script { body: Rc::clone(body), words: rest, submenu };
        self.entries.push(Item { title, id, boots });
        true
    }

    fn simple(&mut self, words: &[String], line: u32) -> Result<bool, GrubError> {
        let Some((name, rest)) = words.split_first() else { return Ok(true) };
        if let Some(body) = self.functions.get(name).cloned() {
            self.deeper()?;
            let words = std::mem::replace(&mut self.words, rest.to_vec());
            let status = self.block(&body)?;
            self.words = words;
            self.returned = false;
            self.depth -= 1;
            return Ok(status);
        }
        if let Some((_, status)) = NOTHING.iter().find(|(known, _)| known == name) {
            return Ok(*status);
        }
        let first = rest.first().map(String::as_str);
        match name.as_str() {
            "set" | "unset" => Ok(self.assign(name, rest)),
            "[" | "test" => {
                let inner = match (name.as_str(), rest.split_last()) {
                    ("[", Some((last, inner))) if last == "]" => inner,
                    _ => rest,
                };
                Ok(test(inner, &|path| self.kind(path)).unwrap_or(false))
            }
            "load_env" => self.load_env(rest),
            "search" => Ok(self.search(rest)),
            "search.fs_uuid" => Ok(self.find(SearchBy::Uuid, rest)),
            "search.fs_label" => Ok(self.find(SearchBy::Label, rest)),
            "search.file" | "search.fs_file" => Ok(self.find(SearchBy::File, rest)),
            "source" | "." => first.map_or(Ok(false), |path| self.file(path, false)),
            "configfile" => first.map_or(Ok(false), |path| self.file(path, true)),
            "linux" | "linuxefi" | "linux16" | "linux32" => Ok(self.linux(rest)),
            "initrd" | "initrdefi" | "initrd16" => Ok(self.initrd(rest)),
            "devicetree" => {
                self.found.devicetree = first.map(|path| self.place(path));
                Ok(true)
            }
            "blscfg" => {
                self.cost(5000)?;
                Ok(self.bls())
            }
            "return" => {
                self.returned = true;
                Ok(first.is_none_or(|code| code == "0"))
            }
            // `name=value` is an assignment.
            _ if name.split_once('=').is_some_and(|(name, _)| is_name(name)) => {
                Ok(self.assign("set", std::slice::from_ref(name)))
            }
            _ => {
                if self.unknown.len() < UNKNOWN_MAX && !name.starts_with("chain") {
                    self.unknown.push(format!("line {line}: {name}"));
                }
                Ok(false)
            }
        }
    }

    fn assign(&mut self, command: &str, words: &[String]) -> bool {
        let Some(word) = words.first() else { return true };
        match word.split_once('=') {
            Some((name, value)) if command == "set" && is_name(name) => self.set(name, value),
            None if command == "unset" => _ = self.variables.remove(word),
            _ => return false,
        }
        true
    }

    fn load_env(&mut self, words: &[String]) -> Result<bool, GrubError> {
        let (mut file, mut only) = ("$".to_owned(), Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-f" | "--file" => file = words.next().cloned().unwrap_or_default(),
                "-s" | "--skip-sig" => {}
                _ => match word.strip_prefix("--file=") {
                    Some(path) => path.clone_into(&mut file),
                    None => only.push(word),
                },
            }
        }
        let path = if file == "$" { format!("{}/grubenv", self.value("prefix")) } else { file };
        let place = self.place(&path);
        let Some(bytes) = self.devices.read(&place.device, &place.path) else {
            return Ok(false);
        };
        self.cost(bytes.len() / 64)?;
        for (name, value) in grubenv::parse(&bytes) {
            if only.is_empty() || only.contains(&&name) {
                self.set(&name, &value);
            }
        }
        Ok(true)
    }

    fn search(&mut self, words: &[String]) -> bool {
        let (mut by, mut variable, mut names) = (SearchBy::File, "root".to_owned(), Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--fs-uuid" | "-u" => by = SearchBy::Uuid,
                "--label" | "--fs-label" | "-l" => by = SearchBy::Label,
                "--file" | "-f" => by = SearchBy::File,
                "--set" | "-s" => variable = words.next().cloned().unwrap_or_default(),
                "--hint" | "-h" => _ = words.next(),
                _ => match word.strip_prefix("--set=") {
                    Some(name) => name.clone_into(&mut variable),
                    None if word.starts_with('-') => {}
                    None => names.push(word.clone()),
                },
            }
        }
        let Some(name) = names.first() else { return false };
        self.find(by, &[name.clone(), variable])
    }

    fn find(&mut self, by: SearchBy, words: &[String]) -> bool {
        let Some(value) = words.first() else { return false };
        let variable = words.get(1).map_or("root", String::as_str);
        match self.devices.search(by, value) {
            Some(device) => {
                self.set(variable, &device);
                true
            }
            None => {
                let what = match by {
                    SearchBy::Uuid => "UUID",
                    SearchBy::Label => "label",
                    SearchBy::File => "file",
                };
                // The first says enough.
                if self.found.missing.is_empty() {
                    let value: String = value.chars().take(128).collect();
                    self.found.missing.push(format!("no file system has the {what} {value}"));
                }
                false
            }
        }
    }

    fn linux(&mut self, words: &[String]) -> bool {
        let Some((kernel, options)) = words.split_first() else { return false };
        self.found.linux = Some(self.place(kernel));
        let quoted = |word: &String| if word.contains(' ') { format!("\"{word}\"") } else { word.clone() };
        self.found.options = options.iter().map(quoted).collect::<Vec<_>>().join(" ");
        true
    }

    fn initrd(&mut self, words: &[String]) -> bool {
        // `newc:NAME:FILE` puts a file into the initramfs, which is not done here.
        self.found.initrds =
            words.iter().filter(|word| !word.starts_with("--")).map(|word| self.place(word)).collect();
        true
    }

    fn bls(&mut self) -> bool {
        let device =
            ["boot", "root"].iter().find_map(|name| self.variables.get(*name)).cloned().unwrap_or_default();
        for entry in self.devices.bls(&device) {
            if self.entries.len() < ENTRIES_MAX {
                let (title, id) = (entry.title.clone(), entry.id.clone());
                self.entries.push(Item { title, id, boots: Boots::Bls(Box::new(entry)) });
            }
        }
        true
    }

    /// Looks into all entries and adds them to `menu`; returns where the wanted one is.
    fn flatten(&mut self, wanted: &str, menu: &mut Menu) -> Result<Option<usize>, GrubError> {
        let (here, below) = split(wanted);
        let items = std::mem::take(&mut self.entries);
        let at = select(&items, &here);
        let mut chosen = None;
        for (index, item) in items.iter().enumerate() {
            if menu.entries.len() >= ENTRIES_MAX {
                break;
            }
            let is_it = index == at;
            let mut inner = State { found: GrubEntry::default(), entries: Vec::new(), ..self.clone() };
            inner.set("chosen", &item.title);
            inner.found.title.clone_from(&item.title);
            inner.found.id.clone_from(&item.id);
            match &item.boots {
                Boots::Bls(entry) => {
                    if is_it {
                        chosen = Some(menu.entries.len());
                    }
                    menu.entries.push(inner.of_bls(entry));
                }
                Boots::Script { body, words, submenu } => {
                    inner.words.clone_from(words);
                    inner.deeper()?;
                    inner.block(body)?;
                    inner.returned = false;
                    if *submenu {
                        let first = menu.entries.len();
                        let found = inner.flatten(below.as_deref().unwrap_or_default(), menu)?;
                        for entry in &mut menu.entries[first..] {
                            entry.title = format!("{}>{}", item.title, entry.title);
                            entry.id = format!("{}>{}", item.id, entry.id);
                        }
                        if is_it {
                            chosen = found.or(Some(first)).filter(|at| *at < menu.entries.len());
                        }
                    } else {
                        if is_it {
                            chosen = Some(menu.entries.len());
                        }
                        menu.entries.push(inner.found.clone());
                    }
                }
            }
            (self.steps, self.unknown) = (inner.steps, inner.unknown);
        }
        Ok(chosen)
    }

    fn of_bls(&self, entry: &BlsEntry) -> GrubEntry {
        let entry = entry.clone().expanded(&self.variables);
        let device =
            ["boot", "root"].iter().find_map(|name| self.variables.get(*name)).cloned().unwrap_or_default();
        let place = |path: &String| {
            let mut place = self.place(path);
            if !path.starts_with('(') {
                place.device.clone_from(&device);
            }
            place
        };
        GrubEntry {
            title: entry.title.clone(),
            id: entry.id.clone(),
            linux: Some(place(&entry.linux)),
            initrds: entry.initrds.iter().map(place).collect(),
            options: entry.options.clone().unwrap_or_default(),
            devicetree: entry.devicetree.as_ref().map(place),
            missing: Vec::new(),
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Cuts `1>2` at its first `>`; two of them stand for one in a title.
fn split(wanted: &str) -> (String, Option<String>) {
    let (mut head, mut rest) = (String::new(), wanted);
    while let Some(at) = rest.find('>') {
        head.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix('>') {
            Some(behind) => {
                head.push('>');
                rest = behind;
            }
            None => return (head, Some(rest.to_owned())),
        }
    }
    head.push_str(rest);
    (head, None)
}

/// The item that is called so, by its id, its title or its place; the first when there is none.
fn select(items: &[Item], wanted: &str) -> usize {
    let bls_id = |item: &Item| matches!(&item.boots, Boots::Bls(entry) if bls::select(std::slice::from_ref(entry), wanted) == Some(0) && wanted != "0");
    let named = items.iter().position(|item| item.id == wanted || item.title == wanted || bls_id(item));
    named.or_else(|| wanted.parse().ok().filter(|at| *at < items.len())).unwrap_or(0)
}
