//! Networks, in the form that addresses are compared in.

use ipnet::{IpNet, Ipv4Net};

/// The block of IPv4-mapped IPv6 addresses, `::ffff:0:0/96` (RFC 4291 §2.5.5.2).
const MAPPED_BITS: u8 = 96;

/// The network as it is compared with callers: an IPv4-mapped one is an IPv4 network, for an IPv4
/// caller is one on an IPv6 socket too.
///
/// One that holds the whole block is refused: it reads as if it named IPv4 callers, and would match
/// none of them.
pub(crate) fn canonical(net: IpNet) -> Result<IpNet, String> {
    let IpNet::V6(v6) = net else {
        return Ok(net);
    };
    let Some(v4) = v6.network().to_ipv4_mapped() else {
        let holds_mapped = v6.prefix_len() < MAPPED_BITS
            && v6.contains(&std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
        return if holds_mapped {
            Err(format!(
                "{v6} holds the IPv4-mapped addresses, and IPv4 callers are compared as IPv4; write IPv4 as such, `0.0.0.0/0` for all, and IPv6 as `2000::/3`, `fc00::/7` or `fe80::/10`"
            ))
        } else {
            Ok(net)
        };
    };
    v6.prefix_len()
        .checked_sub(MAPPED_BITS)
        .and_then(|len| Ipv4Net::new(v4, len).ok())
        .map(IpNet::V4)
        .ok_or_else(|| format!("{v6} is wider than the IPv4-mapped addresses; write it as IPv4"))
}

/// A network in text, as [`canonical`].
pub(crate) fn parse(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .parse()
        .map_err(|_| "it is not an address, `/` and the length of a prefix".to_owned())?;
    canonical(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_network_is_an_ipv4_network() {
        for (text, expected) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:a00:0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2000::/3", "2000::/3"),
            ("::1/128", "::1/128"),
            ("::fffe:0:0/96", "::fffe:0:0/96"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), expected, "{text}");
        }
        for text in ["::/0", "::/80", "::ffff:0:0/95", "::fffe:0:0/95"] {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains("0.0.0.0/0") || error.contains("as IPv4"),
                "{error}"
            );
        }
    }
}
