//! Addresses as text where there are very many, without `fmt`.

use std::net::{IpAddr, SocketAddr};

/// As `ip.to_string()`.
pub(crate) fn of_ip(ip: IpAddr) -> String {
    let IpAddr::V4(ip) = ip else {
        return ip.to_string();
    };
    let mut text = String::with_capacity("255.255.255.255".len());
    for (nth, octet) in ip.octets().into_iter().enumerate() {
        if nth > 0 {
            text.push('.');
        }
        text.push_str(itoa::Buffer::new().format(octet));
    }
    text
}

/// As `address.to_string()`.
pub(crate) fn of_socket(address: &SocketAddr) -> String {
    if address.is_ipv6() {
        return address.to_string();
    }
    let mut port = itoa::Buffer::new();
    [&of_ip(address.ip()), ":", port.format(address.port())].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_everywhere() {
        for text in [
            "0.0.0.0:0",
            "10.0.1.100:8080",
            "255.255.255.255:65535",
            "[::]:1",
            "[::ffff:10.0.0.1]:80",
            "[fe80::1%3]:443",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(of_socket(&address), text);
            assert_eq!(of_ip(address.ip()), address.ip().to_string());
        }
    }
}
