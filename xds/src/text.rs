//! Numbers and addresses as text, where there are very many: a tenth of what `fmt` takes for them.

use std::net::{IpAddr, SocketAddr};

/// Adds a number in decimal.
pub(crate) fn push_number(to: &mut String, number: impl itoa::Integer) {
    to.push_str(itoa::Buffer::new().format(number));
}

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
        push_number(&mut text, octet);
    }
    text
}

/// As `address.to_string()`.
pub(crate) fn of_socket(address: &SocketAddr) -> String {
    if address.is_ipv6() {
        return address.to_string();
    }
    let mut text = of_ip(address.ip());
    text.push(':');
    push_number(&mut text, address.port());
    text
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
