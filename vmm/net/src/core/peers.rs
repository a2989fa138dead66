//! The other machines of the guest's network, which are behind the second link.

use super::out::Action;
use super::{Net, OWN_MAC};
use crate::dns::{PTR, Query};
use crate::link::NetHeader;
use crate::peers::Names;
use crate::wire::{Arp, Frame, kind};

impl Net {
    /// The names of the network have become these.
    pub fn set_names(&mut self, names: Names) {
        self.names = names;
    }

    /// Passes the frame in hand on, if it is for others.
    pub(super) fn pass_on(&mut self, frame: &Frame<'_>) {
        if !self.config.peers || frame.dst == OWN_MAC {
            return;
        }
        // Who has an address of this network's own is answered here.
        let own = frame.kind == kind::ARP
            && Arp::parse(frame.payload)
                .is_none_or(|arp| self.is_gateway(arp.target.1.into()) || self.is_dns(arp.target.1.into()));
        if !own {
            self.actions.push_back(Action::Peers);
        }
    }

    /// Whether a message of the switch may be passed on to the guest: it is a frame of another
    /// machine, for the guest or for everybody.
    #[must_use]
    pub fn is_from_peer(&self, message: &[u8]) -> bool {
        let frame = NetHeader::parse(message).and_then(|(_, bytes)| Frame::parse(bytes));
        let (Some(frame), Some(maker)) = (frame, self.maker()) else { return false };
        let meant = frame.dst == maker.guest || !frame.dst.is_unicast();
        meant && frame.src.is_unicast() && frame.src != OWN_MAC && frame.src != maker.guest
    }

    /// The answer to a question about the network's own names, with no time to be kept: who is
    /// there may change at any moment. `None`: the question is about something else.
    pub(super) fn peers_answer(&self, query: &Query, message: &[u8]) -> Option<Vec<u8>> {
        if query.kind == PTR {
            return self.names.pointed(&query.name).map(|name| query.answer_name(message, &name));
        }
        self.names.addresses(&query.name).map(|addresses| query.answer_for(message, addresses, 0))
    }
}
