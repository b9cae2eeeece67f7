//! Which addresses lie on the public internet, and the networks that a user grants beyond it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What an address is, if it is none of the public internet: it is refused unless it was granted by name.
///
/// After the special-purpose registries of IANA (RFC 6890). An IPv6 address that carries an IPv4 one is refused as such, because what it
/// reaches is decided by whoever translates it; the well-known prefix of NAT64 is what the carried address is.
pub(crate) fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let within = |a, b, c, d, bits| Network { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), bits }.contains(IpAddr::V4(address));
    Some(match () {
        () if within(0, 0, 0, 0, 8) => "an unspecified address",
        () if within(127, 0, 0, 0, 8) => "a loopback address",
        () if within(10, 0, 0, 0, 8) || within(172, 16, 0, 0, 12) || within(192, 168, 0, 0, 16) => "a private address",
        () if within(169, 254, 0, 0, 16) => "a link-local address",
        () if within(100, 64, 0, 0, 10) => "a carrier-grade NAT address",
        () if within(224, 0, 0, 0, 4) => "a multicast address",
        () if within(192, 0, 2, 0, 24) || within(198, 51, 100, 0, 24) || within(203, 0, 113, 0, 24) => "a documentation address",
        () if within(192, 0, 0, 0, 24) || within(192, 88, 99, 0, 24) || within(198, 18, 0, 0, 15) || within(240, 0, 0, 0, 4) => {
            "a reserved address"
        }
        () => return None,
    })
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [a, b, .., y, z] = address.segments();
    let carried = || {
        let ([a, b], [c, d]) = (y.to_be_bytes(), z.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    Some(match () {
        () if address.is_unspecified() => "an unspecified address",
        () if address.is_loopback() => "a loopback address",
        () if address.to_ipv4_mapped().is_some() => "an IPv4-mapped address",
        // 64:ff9b::/96
        () if address.segments().starts_with(&[0x64, 0xff9b, 0, 0, 0, 0]) => return special_v4(carried()),
        () if a & 0xfe00 == 0xfc00 => "a unique local address",
        () if a & 0xffc0 == 0xfe80 => "a link-local address",
        () if a & 0xff00 == 0xff00 => "a multicast address",
        // 6to4 and Teredo carry IPv4 addresses.
        () if a == 0x2002 || (a == 0x2001 && b == 0) => "an address that carries an IPv4 address",
        () if (a == 0x2001 && b == 0xdb8) || (a == 0x3fff && b < 0x1000) => "a documentation address",
        // 2001::/23 is for protocols, and only 2000::/3 is global unicast at all.
        () if (a == 0x2001 && b < 0x200) || a & 0xe000 != 0x2000 => "a reserved address",
        () => return None,
    })
}

/// A range of addresses, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// One address.
    pub fn single(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether it holds an address. An IPv4-mapped address is in no IPv4 range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32_u32.saturating_sub(u32::from(self.bits));
                own.to_bits().checked_shr(shift).unwrap_or(0) == other.to_bits().checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128_u32.saturating_sub(u32::from(self.bits));
                own.to_bits().checked_shr(shift).unwrap_or(0) == other.to_bits().checked_shr(shift).unwrap_or(0)
            }
            _ => false,
        }
    }

    /// Whether bits beyond the prefix are set, as in `10.1.2.3/8`: then it is not clear what is meant.
    fn has_host_bits(&self) -> bool {
        match self.address {
            IpAddr::V4(a) => a.to_bits().checked_shl(u32::from(self.bits)).unwrap_or(0) != 0,
            IpAddr::V6(a) => a.to_bits().checked_shl(u32::from(self.bits)).unwrap_or(0) != 0,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no range of addresses; write it like 10.1.2.3, 10.0.0.0/8 or fd00::/8");
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let whole = Self::single(address.parse().map_err(|_| wrong())?);
        let Some(bits) = bits else { return Ok(whole) };
        let bits = bits.parse().ok().filter(|n| *n <= whole.bits && !bits.starts_with('+')).ok_or_else(wrong)?;
        let network = Self { bits, ..whole };
        if network.has_host_bits() {
            return Err(format!("`{text}` has bits set beyond its prefix of {bits}; name the first address of the range"));
        }
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_public_internet() {
        let cases = [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("10.0.0.1", "private"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.168.1.1", "private"),
            ("169.254.169.254", "link-local"),
            ("100.64.0.1", "carrier-grade"),
            ("100.127.255.255", "carrier-grade"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("192.0.2.1", "documentation"),
            ("192.0.0.8", "reserved"),
            ("198.18.0.1", "reserved"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::ffff:8.8.8.8", "IPv4-mapped"),
            ("::ffff:127.0.0.1", "IPv4-mapped"),
            ("::8.8.8.8", "reserved"),
            ("64:ff9b::7f00:1", "loopback"),
            ("64:ff9b::10.0.0.1", "private"),
            ("64:ff9b:1::8.8.8.8", "reserved"),
            ("fc00::1", "unique local"),
            ("fdff::1", "unique local"),
            ("fe80::1", "link-local"),
            ("fec0::1", "reserved"),
            ("ff02::1", "multicast"),
            ("2002:7f00:1::", "carries"),
            ("2001::1", "carries"),
            ("2001:db8::1", "documentation"),
            ("3fff:fff::1", "documentation"),
            ("2001:20::1", "reserved"),
            ("100::1", "reserved"),
            ("4000::1", "reserved"),
        ];
        for (address, part) in cases {
            let found = special(address.parse().unwrap()).unwrap_or("public");
            assert!(found.contains(part), "{address}: {found}");
        }
        for public in ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "223.255.255.255", "169.253.0.1"]
        {
            assert_eq!(special(public.parse().unwrap()), None, "{public}");
        }
        for public in ["2606:4700:4700::1111", "2001:4860:4860::8888", "64:ff9b::8.8.8.8", "2a00::1", "3ffe::1"] {
            assert_eq!(special(public.parse().unwrap()), None, "{public}");
        }
    }

    #[test]
    fn networks() {
        let network = |text: &str| text.parse::<Network>();
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("fd00::/8", "fd12::1", "fc00::1"),
            ("::/0", "::ffff:1.2.3.4", "1.2.3.4"),
            ("127.0.0.0/8", "127.1.1.1", "::ffff:127.1.1.1"),
        ] {
            let network = network(text).unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{text} {outside}");
            assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
        }
        for wrong in
            ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/-1", "localhost", "10.0.0", "::/129", "10.1.2.3/8", "fd00::1/8"]
        {
            assert!(network(wrong).is_err(), "{wrong}");
        }
    }
}
