//! The inodes that the driver knows, by the numbers that it was given.
//!
//! An inode is no descriptor: it is the place where it was last seen, a name in another inode, and
//! the identity by which it is known again. Only what has lost its name (an open file that was
//! unlinked) holds a descriptor. So a driver may know millions.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::errno::Errno;
use crate::sys::Identity;

/// The driver's number of the root.
pub(crate) const ROOT: u64 = 1;

/// How to reach an inode.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// By a descriptor.
    Pinned(Arc<OwnedFd>),
    /// By its name in a directory.
    Named(u64, Arc<CStr>),
}

#[derive(Debug)]
struct Node {
    identity: Identity,
    parent: u64,
    /// `None`: it has none any more, or it is not known.
    name: Option<Arc<CStr>>,
    pin: Option<Arc<OwnedFd>>,
    /// Answers that named it to the driver and were not taken back.
    lookups: u64,
    /// Inodes whose place is in this one.
    children: u64,
    /// Open handles.
    handles: u64,
    /// One of them, perhaps closed.
    handle: u64,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: HashMap<u64, Node>,
    numbers: HashMap<Identity, u64>,
    last: u64,
    pins: usize,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Nodes {
    inner: Mutex<Inner>,
    max: usize,
    pins_max: usize,
}

/// What is closed when nothing is locked any more.
pub(crate) type Gone = Vec<(u64, Option<Arc<OwnedFd>>)>;

impl Nodes {
    /// Knows the root alone. At most `max` inodes, and `pins_max` that have lost their names.
    pub(crate) fn new(root: Option<(Identity, Arc<OwnedFd>)>, max: usize, pins_max: usize) -> Self {
        let nodes = Self { inner: Mutex::default(), max, pins_max };
        nodes.start(root);
        nodes
    }

    fn start(&self, root: Option<(Identity, Arc<OwnedFd>)>) {
        let mut inner = self.inner();
        // Numbers go on: what a driver before a reset knew is nothing now.
        inner.last = inner.last.max(ROOT);
        if let Some((identity, fd)) = root {
            let (name, pin) = (None, Some(fd));
            let root =
                Node { identity, parent: ROOT, name, pin, lookups: 1, children: 0, handles: 0, handle: 0 };
            inner.nodes.insert(ROOT, root);
            inner.numbers.insert(identity, ROOT);
        }
    }

    /// Forgets all but the root.
    pub(crate) fn reset(&self) {
        let mut inner = self.inner();
        let root = inner.nodes.remove(&ROOT).and_then(|root| Some((root.identity, root.pin?)));
        let gone = std::mem::take(&mut inner.nodes);
        inner.numbers.clear();
        inner.pins = 0;
        drop(inner);
        drop(gone);
        self.start(root);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics between two changes that belong together.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of an inode that was found at a place and is told to the driver; its place is
    /// this one from now on. `ENFILE`: there are too many.
    pub(crate) fn enter(&self, identity: Identity, parent: u64, name: &CStr) -> Result<u64, Errno> {
        let mut inner = self.inner();
        if !inner.nodes.contains_key(&parent) {
            return Err(Errno::STALE);
        }
        let number = match inner.numbers.get(&identity) {
            Some(number) => *number,
            None => inner.add(identity, self.max)?,
        };
        let unpinned = inner.move_to(number, parent, name);
        if let Some(node) = inner.nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_add(1);
        }
        drop(inner);
        drop(unpinned);
        Ok(number)
    }

    /// The same for one without a name, reached by `pin`.
    pub(crate) fn enter_pinned(&self, identity: Identity, pin: Arc<OwnedFd>) -> Result<u64, Errno> {
        let mut inner = self.inner();
        if inner.pins >= self.pins_max {
            return Err(Errno::NFILE);
        }
        let number = match inner.numbers.get(&identity) {
            Some(number) => *number,
            None => inner.add(identity, self.max)?,
        };
        inner.pin(number, pin);
        if let Some(node) = inner.nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_add(1);
        }
        Ok(number)
    }

    /// The number of an inode, if the driver may know it.
    pub(crate) fn find(&self, identity: Identity) -> Option<u64> {
        self.inner().numbers.get(&identity).copied()
    }

    /// How to reach an inode, and how to know that it is the one.
    pub(crate) fn place(&self, number: u64) -> Result<(Place, Identity), Errno> {
        let inner = self.inner();
        let node = inner.nodes.get(&number).ok_or(Errno::STALE)?;
        let place = match (&node.pin, &node.name) {
            (Some(pin), _) => Place::Pinned(Arc::clone(pin)),
            (None, Some(name)) => Place::Named(node.parent, Arc::clone(name)),
            (None, None) => return Err(Errno::STALE),
        };
        Ok((place, node.identity))
    }

    /// By what an inode is known.
    pub(crate) fn identity(&self, number: u64) -> Result<Identity, Errno> {
        Ok(self.inner().nodes.get(&number).ok_or(Errno::STALE)?.identity)
    }

    /// The driver takes back `lookups` answers. Returns what became free with it.
    pub(crate) fn forget(&self, number: u64, lookups: u64) -> Gone {
        let mut inner = self.inner();
        match inner.nodes.get_mut(&number) {
            Some(node) if number != ROOT => node.lookups = node.lookups.saturating_sub(lookups),
            _ => return Gone::new(),
        }
        inner.free(number)
    }

    /// A handle is opened, which keeps the inode.
    pub(crate) fn opened(&self, number: u64, handle: u64) -> Result<(), Errno> {
        let mut inner = self.inner();
        let node = inner.nodes.get_mut(&number).ok_or(Errno::STALE)?;
        node.handles += 1;
        node.handle = handle;
        Ok(())
    }

    /// It is closed.
    pub(crate) fn closed(&self, number: u64) -> Gone {
        let mut inner = self.inner();
        if let Some(node) = inner.nodes.get_mut(&number) {
            node.handles = node.handles.saturating_sub(1);
        }
        inner.free(number)
    }

    /// A handle of an inode that was not closed yet, perhaps.
    pub(crate) fn handle(&self, number: u64) -> Option<u64> {
        self.inner().nodes.get(&number).filter(|node| node.handles > 0).map(|node| node.handle)
    }

    /// An inode has another name now.
    pub(crate) fn moved(&self, number: u64, parent: u64, name: &CStr) {
        let mut inner = self.inner();
        let unpinned = inner.move_to(number, parent, name);
        drop(inner);
        drop(unpinned);
    }

    /// Whether an inode that is about to lose a name needs a descriptor then; `None`: it is known
    /// by another one. `ENFILE`: it needs one, being open, and too many such are held.
    pub(crate) fn may_lose(&self, number: u64, parent: u64, name: &CStr) -> Result<Option<bool>, Errno> {
        let inner = self.inner();
        let Some(node) = inner.nodes.get(&number) else { return Ok(None) };
        if node.parent != parent || node.name.as_deref() != Some(name) {
            return Ok(None);
        }
        match inner.pins < self.pins_max {
            true => Ok(Some(true)),
            false if node.handles > 0 => Err(Errno::NFILE),
            false => Ok(Some(false)),
        }
    }

    /// An inode lost the name by which it was known; `pin` reaches it.
    pub(crate) fn lost(&self, number: u64, pin: Option<Arc<OwnedFd>>) {
        let mut inner = self.inner();
        let Some(node) = inner.nodes.get_mut(&number) else { return };
        node.name = None;
        if let Some(pin) = pin
            && inner.pins < self.pins_max
        {
            inner.pin(number, pin);
        }
    }

    /// How many inodes are known, and how many of them by a descriptor.
    pub(crate) fn count(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.nodes.len(), inner.pins)
    }
}

impl Inner {
    fn add(&mut self, identity: Identity, max: usize) -> Result<u64, Errno> {
        if self.nodes.len() >= max {
            return Err(Errno::NFILE);
        }
        self.last += 1;
        let number = self.last;
        let node = Node {
            identity,
            parent: ROOT,
            name: None,
            pin: None,
            lookups: 0,
            children: 0,
            handles: 0,
            handle: 0,
        };
        if let Some(root) = self.nodes.get_mut(&ROOT) {
            root.children += 1;
        }
        self.nodes.insert(number, node);
        self.numbers.insert(identity, number);
        Ok(number)
    }

    fn pin(&mut self, number: u64, pin: Arc<OwnedFd>) {
        if let Some(node) = self.nodes.get_mut(&number)
            && node.pin.replace(pin).is_none()
        {
            self.pins += 1;
        }
    }

    /// Changes the place of an inode. Returns the descriptor that it no longer needs.
    fn move_to(&mut self, number: u64, parent: u64, name: &CStr) -> Option<Arc<OwnedFd>> {
        if number == ROOT || number == parent {
            return None;
        }
        let node = self.nodes.get_mut(&number)?;
        if node.name.as_deref() != Some(name) {
            node.name = Some(name.into());
        }
        let unpinned = node.pin.take();
        // What holds no place cannot be above itself.
        let may_circle = node.children > 0;
        let before = std::mem::replace(&mut node.parent, parent);
        self.pins -= usize::from(unpinned.is_some());
        if before != parent {
            if let Some(parent) = self.nodes.get_mut(&parent) {
                parent.children += 1;
            }
            if let Some(before) = self.nodes.get_mut(&before) {
                before.children = before.children.saturating_sub(1);
            }
            if may_circle {
                self.cut(number);
            }
        }
        unpinned
    }

    /// Breaks a circle of places, which comes to be when the host moves directories and the driver
    /// has seen only one of the moves: the next inode on the way up is nowhere until it is seen.
    fn cut(&mut self, number: u64) {
        let mut at = number;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { return };
            let parent = node.parent;
            if parent == number && at != number || parent == at {
                if let Some(node) = self.nodes.get_mut(&at) {
                    node.parent = ROOT;
                    node.name = None;
                }
                for (which, more) in [(ROOT, true), (number, false)] {
                    if let Some(node) = self.nodes.get_mut(&which) {
                        node.children =
                            if more { node.children + 1 } else { node.children.saturating_sub(1) };
                    }
                }
                return;
            }
            at = parent;
        }
    }

    /// Removes an inode that nothing holds any more, and those above it that only it held.
    fn free(&mut self, number: u64) -> Gone {
        let mut gone = Gone::new();
        let mut at = number;
        while at != ROOT {
            let held = |node: &Node| node.lookups > 0 || node.children > 0 || node.handles > 0;
            if self.nodes.get(&at).is_none_or(held) {
                break;
            }
            let Some(node) = self.nodes.remove(&at) else { break };
            self.numbers.remove(&node.identity);
            self.pins -= usize::from(node.pin.is_some());
            gone.push((at, node.pin));
            if let Some(parent) = self.nodes.get_mut(&node.parent) {
                parent.children = parent.children.saturating_sub(1);
            }
            at = node.parent;
        }
        gone
    }
}
