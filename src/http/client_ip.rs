//! Whose address a request comes from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use actix_web::http::header::HeaderMap;
use ipnet::IpNet;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The peer, or, if the peer is a trusted proxy, the rightmost address of `X-Forwarded-For` that is
/// not one. What stands left of it was written by the client and means nothing.
pub fn client_ip(peer: Option<SocketAddr>, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut ip = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| {
        peer.ip().to_canonical()
    });
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    if !is_trusted(&ip) {
        return ip;
    }
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).collect();
    for line in lines.iter().rev() {
        let Ok(line) = line.to_str() else {
            return ip;
        };
        for hop in line.rsplit(',') {
            // What a trusted proxy wrote and we cannot read ends the chain there.
            let Some(hop) = parse_hop(hop.trim()) else {
                return ip;
            };
            ip = hop;
            if !is_trusted(&ip) {
                return ip;
            }
        }
    }
    ip
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1` or `[2001:db8::1]:4711`.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    hop.parse::<IpAddr>()
        .or_else(|_not_bare| hop.parse::<SocketAddr>().map(|address| address.ip()))
        .or_else(|_no_port| hop.trim_start_matches('[').trim_end_matches(']').parse())
        .ok()
        .map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn ip(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(
                HeaderName::from_static(FORWARDED_FOR),
                HeaderValue::from_str(line).unwrap(),
            );
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        let peer = peer.parse().unwrap();
        client_ip(Some(peer), &headers, &trusted).to_string()
    }

    #[test]
    fn without_a_trusted_proxy_the_header_means_nothing() {
        assert_eq!(ip("192.0.2.9:1", &["10.0.0.1"], &[]), "192.0.2.9");
        assert_eq!(
            ip("192.0.2.9:1", &["10.0.0.1"], &["10.0.0.0/8"]),
            "192.0.2.9"
        );
    }

    #[test]
    fn the_rightmost_untrusted_hop_is_the_client() {
        let trusted = ["10.0.0.0/8", "::1/128"];
        assert_eq!(
            ip("10.0.0.2:1", &["1.1.1.1, 192.0.2.7"], &trusted),
            "192.0.2.7"
        );
        assert_eq!(
            ip("10.0.0.2:1", &["1.1.1.1", "192.0.2.7, 10.1.1.1"], &trusted),
            "192.0.2.7"
        );
        assert_eq!(ip("[::1]:1", &["192.0.2.7:443"], &trusted), "192.0.2.7");
        assert_eq!(
            ip("[::1]:1", &["[2001:db8::1]:443"], &trusted),
            "2001:db8::1"
        );
        assert_eq!(ip("10.0.0.2:1", &["10.0.0.3"], &trusted), "10.0.0.3");
        assert_eq!(ip("10.0.0.2:1", &[], &trusted), "10.0.0.2");
    }

    #[test]
    fn what_cannot_be_read_ends_the_chain_at_the_last_known_hop() {
        let trusted = ["10.0.0.0/8"];
        for line in ["unknown", "", "_hidden, ", "192.0.2.7, <script>"] {
            assert_eq!(ip("10.0.0.2:1", &[line], &trusted), "10.0.0.2", "{line}");
        }
    }

    #[test]
    fn an_ipv4_address_mapped_to_ipv6_is_the_ipv4_address() {
        assert_eq!(ip("[::ffff:192.0.2.9]:1", &[], &[]), "192.0.2.9");
        assert_eq!(
            ip(
                "[::ffff:10.0.0.2]:1",
                &["::ffff:192.0.2.7"],
                &["10.0.0.0/8"]
            ),
            "192.0.2.7"
        );
    }
}
