//! The guest's network as the agent's protocol has it.

use nelly_protocol::messages as wire;

use crate::spec::network::GuestNetwork;

/// The message for a guest with this network.
pub(super) fn message(network: &GuestNetwork) -> wire::Network {
    let route =
        |gateway: &std::net::IpAddr| wire::Route { gateway: gateway.to_string(), ..Default::default() };
    let interface = wire::Interface {
        mac: network.mac.bytes().to_vec(),
        mtu: network.mtu.get().into(),
        addresses: network.addresses.iter().map(ToString::to_string).collect(),
        routes: network.gateways.iter().map(route).collect(),
        ..Default::default()
    };
    wire::Network {
        interfaces: vec![interface],
        nameservers: network.nameservers.iter().map(ToString::to_string).collect(),
        search: network.search.clone(),
        hosts: network.hosts.iter().map(|(address, name)| format!("{address} {name}")).collect(),
        authorities: network.authorities.clone(),
        ..Default::default()
    }
}
