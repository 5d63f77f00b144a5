//! The rules as text for `nft`, and what is read back. Pure.
//!
//! One table for one pocketfleet. Packets are judged by the user of the socket that sends them, so nothing has to be
//! known of interfaces or connections, and nothing is tracked.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;

/// One entry of a set: the set's name, and the entry as `nft -n` prints it.
pub(super) type Element = (&'static str, String);

/// What the names of all tables of pocketfleet begin with.
const PREFIX: &str = "pocketfleet_";

/// Sets, and what they hold.
const SETS: [(&str, &str); 9] = [
    ("others", "uid"),
    ("listeners", "uid . ipv4_addr . inet_service"),
    ("public_ports", "uid . inet_service"),
    ("anywhere", "uid . inet_service"),
    ("exact4", "uid . ipv4_addr . inet_service"),
    ("exact6", "uid . ipv6_addr . inet_service"),
    ("asking", "uid"),
    ("resolvers4", "ipv4_addr"),
    ("resolvers6", "ipv6_addr"),
];

/// Networks that are not the public internet, or where clouds keep services for their own machines. The same as
/// `outbound::address`, as far as `fib` does not know them.
const PRIVATE_V4: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 168.63.129.16, \
                          172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, \
                          198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/3";
const PRIVATE_V6: &str = "2001::/23, 2001:db8::/32, 2002::/16, 3fff::/20";

/// Whose table it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// Hash of the data directory.
    pub(super) data: u32,
    /// The first user, who bakes templates.
    pub(super) base: u32,
    pub(super) count: u32,
}

impl Owner {
    pub(super) fn table(self) -> String {
        let Self { data, base, count } = self;
        format!("{PREFIX}{data:08x}_{base}_{count}")
    }

    /// Whose a table is; none for those that are not pocketfleet's.
    pub(super) fn of(table: &str) -> Option<Self> {
        let mut parts = table.strip_prefix(PREFIX)?.split('_');
        let data = u32::from_str_radix(parts.next()?, 16).ok()?;
        let (base, count) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { data, base, count })
    }

    /// Whether a user is one of the range that tenants get theirs from now.
    pub(super) fn has(self, user: u32) -> bool {
        user > self.base && u64::from(user) < self.end()
    }

    fn end(self) -> u64 {
        u64::from(self.base) + u64::from(self.count)
    }

    /// Whether another pocketfleet's rules are about some of the same users.
    pub(super) fn is_hurt_by(self, other: Self) -> bool {
        self.data != other.data && u64::from(self.base) < other.end() && u64::from(other.base) < self.end()
    }
}

/// Where the processes of one user may connect to. Nowhere by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// TCP ports of hosts on the public internet.
    pub(crate) public: Vec<u16>,
    /// Single addresses, public or not.
    pub(crate) exact: Vec<SocketAddr>,
    /// TCP ports of every host, this one included: what the operator's configuration takes.
    pub(crate) anywhere: Vec<u16>,
}

impl Reach {
    /// The entries of a user.
    pub(super) fn elements(&self, user: u32, listens: impl Iterator<Item = SocketAddrV4>) -> BTreeSet<Element> {
        let ports = |set, ports: &[u16]| {
            let element = move |port: &u16| (set, format!("{user} . {port}"));
            ports.iter().map(element).collect::<Vec<_>>()
        };
        let address = |address: &SocketAddr| {
            let set = if address.is_ipv4() { "exact4" } else { "exact6" };
            (set, format!("{user} . {} . {}", address.ip(), address.port()))
        };
        let listens = listens.map(|address| ("listeners", format!("{user} . {} . {}", address.ip(), address.port())));
        let asks = !self.public.is_empty() || !self.exact.is_empty() || !self.anywhere.is_empty();
        listens
            .chain(ports("public_ports", &self.public))
            .chain(ports("anywhere", &self.anywhere))
            .chain(self.exact.iter().map(address))
            .chain(asks.then(|| ("asking", user.to_string())))
            .collect()
    }
}

/// The entries of the machine's name servers, from the text of `resolv.conf`.
pub(super) fn resolvers(text: &str) -> BTreeSet<Element> {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    // A link-local address has its interface behind it.
    let addresses = named.filter_map(|rest| rest.trim().split('%').next()?.parse::<IpAddr>().ok());
    let found: BTreeSet<Element> = addresses.map(resolver).collect();
    if !found.is_empty() {
        return found;
    }
    // What resolvers ask when nothing is configured.
    [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0_u16, 0, 0, 0, 0, 0, 0, 1])].into_iter().map(resolver).collect()
}

fn resolver(address: IpAddr) -> Element {
    (if address.is_ipv4() { "resolvers4" } else { "resolvers6" }, address.to_string())
}

/// The whole table, in place of whatever was there under its name or the names of `earlier` ones.
pub(super) fn whole<'a>(owner: Owner, earlier: &[String], elements: impl Iterator<Item = &'a Element>) -> String {
    let table = owner.table();
    let mut text = without(earlier.iter().chain([&table]));
    text.extend(["table inet ", &table, " {\n"]);
    for (name, kind) in SETS {
        text.extend(["set ", name, " { type ", kind, "; }\n"]);
    }
    text.push_str(&chains(owner));
    text.push_str("}\n");
    text.push_str(&change(owner, std::iter::empty(), elements));
    text
}

/// No such tables.
pub(super) fn without<'a>(tables: impl IntoIterator<Item = &'a String>) -> String {
    let mut text = String::new();
    for name in tables {
        // A table has to be there to be deleted.
        text.extend(["add table inet ", name, "\ndelete table inet ", name, "\n"]);
    }
    text
}

fn chains(owner: Owner) -> String {
    let (baker, first, last) = (owner.base, owner.base + 1, owner.end() - 1);
    // Answers of a tenant's own listener, and nobody else's: what squats on a stopped tenant's address can accept
    // nothing. A connection that a tenant begins from that address is no answer.
    let answer = "tcp flags & (syn | ack) != syn";
    let names = "meta l4proto { tcp, udp } th dport 53 ip daddr @resolvers4 accept
        meta l4proto { tcp, udp } th dport 53 ip6 daddr @resolvers6 accept";
    format!(
        "chain refuse {{
            meta l4proto tcp reject with tcp reset
            reject with icmpx admin-prohibited
        }}
        chain public {{
            fib daddr type != unicast goto refuse
            ip daddr {{ {PRIVATE_V4} }} goto refuse
            meta nfproto ipv6 ip6 daddr != 2000::/3 goto refuse
            ip6 daddr {{ {PRIVATE_V6} }} goto refuse
        }}
        chain names {{
            {names}
        }}
        chain tenant {{
            {answer} meta skuid . ip saddr . tcp sport @listeners accept
            ip daddr 127.64.0.0/10 goto refuse
            meta skuid . ip daddr . tcp dport @exact4 accept
            meta skuid . ip6 daddr . tcp dport @exact6 accept
            meta skuid . tcp dport @anywhere accept
            meta skuid @asking jump names
            jump public
            meta skuid . tcp dport @public_ports accept
            goto refuse
        }}
        chain baker {{
            {answer} ip saddr 127.0.0.0/8 accept
            jump names
            jump public
            meta l4proto tcp accept
            goto refuse
        }}
        chain output {{
            type filter hook output priority 0; policy accept;
            meta skuid {baker} goto baker
            meta skuid {first}-{last} goto tenant
            meta skuid @others goto tenant
        }}\n"
    )
}

/// Single entries less and more.
pub(super) fn change<'a>(
    owner: Owner,
    less: impl Iterator<Item = &'a Element>,
    more: impl Iterator<Item = &'a Element>,
) -> String {
    let table = owner.table();
    let mut text = String::new();
    let mut lines = |verb: &str, elements: &mut dyn Iterator<Item = &'a Element>| {
        for (set, element) in elements {
            text.extend([verb, " element inet ", &table, " ", set, " { ", element, " }\n"]);
        }
    };
    lines("delete", &mut less.into_iter());
    lines("add", &mut more.into_iter());
    text
}

/// A table as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// The rules, as printed.
    pub(super) chains: String,
    pub(super) elements: BTreeSet<Element>,
}

/// Reads a listing: rules as they are, entries of sets in an order of their own.
pub(super) fn read(listing: &str) -> Listed {
    let mut listed = Listed::default();
    let mut set = None;
    let mut is_element = false;
    for line in listing.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("set ").and_then(|rest| rest.strip_suffix(" {")) {
            set = SETS.iter().map(|(known, _)| *known).find(|known| *known == name);
            // A set that is not ours is a change of the rules.
            if set.is_none() {
                listed.chains.extend([line, "\n"]);
            }
            continue;
        }
        let Some(name) = set else {
            listed.chains.extend([line, "\n"]);
            continue;
        };
        let entries = match line.strip_prefix("elements = {") {
            Some(rest) => {
                is_element = true;
                rest
            }
            None => line,
        };
        if is_element {
            let text = entries.trim_end_matches('}');
            let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            listed.elements.extend(entries.map(|entry| (name, entry.to_owned())));
            is_element = !entries_end(line);
        } else if line == "}" {
            set = None;
        }
    }
    listed
}

fn entries_end(line: &str) -> bool {
    line.ends_with('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { data: 0x1234_abcd, base: 1_000_000, count: 1_000 };

    #[test]
    fn a_tables_name_says_whose_it_is_and_whom_it_is_about() {
        assert_eq!(OWNER.table(), "pocketfleet_1234abcd_1000000_1000");
        assert_eq!(Owner::of(&OWNER.table()), Some(OWNER));
        for foreign in ["filter", "pocketfleet_", "pocketfleet_1234abcd_1000000", "pocketfleet_1_2_3_4", "firewalld"] {
            assert_eq!(Owner::of(foreign), None, "{foreign}");
        }
        let other = |base, count| Owner { data: 1, base, count };
        assert!(OWNER.is_hurt_by(other(1_000_999, 5)) && OWNER.is_hurt_by(other(999_000, 1_001)));
        assert!(!OWNER.is_hurt_by(other(1_001_000, 5)) && !OWNER.is_hurt_by(other(999_000, 1_000)));
        assert!(!OWNER.is_hurt_by(Owner { base: 1_000_001, ..OWNER }), "its own, from before a change of its range");
    }

    #[test]
    fn a_reach_becomes_entries_and_nothing_to_reach_becomes_none() {
        let listens = || ["127.64.1.2:20001".parse().unwrap()].into_iter();
        let none = Reach::default().elements(7, listens());
        assert_eq!(none, BTreeSet::from([("listeners", "7 . 127.64.1.2 . 20001".to_owned())]));
        let some = Reach {
            public: vec![443],
            exact: vec!["10.0.0.5:5432".parse().unwrap(), "[::1]:25".parse().unwrap()],
            anywhere: vec![587],
        };
        let texts: Vec<String> =
            some.elements(7, std::iter::empty()).into_iter().map(|(set, text)| format!("{set} {text}")).collect();
        assert_eq!(
            texts,
            [
                "anywhere 7 . 587",
                "asking 7",
                "exact4 7 . 10.0.0.5 . 5432",
                "exact6 7 . ::1 . 25",
                "public_ports 7 . 443"
            ]
        );
    }

    #[test]
    fn name_servers_are_read_and_have_a_default() {
        let found = |text: &str| resolvers(text).into_iter().map(|(_, address)| address).collect::<Vec<_>>();
        assert_eq!(
            found("# x\nnameserver 10.0.0.2\nsearch a\n nameserver\tfd00::3 \nnameserver fe80::1%eth0"),
            ["10.0.0.2", "fd00::3", "fe80::1"]
        );
        assert_eq!(found("search here\n"), ["127.0.0.1", "::1"]);
    }

    #[test]
    fn a_listing_is_read_whatever_the_order_of_its_entries() {
        let listing = "table inet t {\n\tset listeners {\n\t\ttype uid . ipv4_addr . inet_service\n\t\telements = { 2 . 127.64.1.2 . 20001,\n\t\t\t     1 . 127.64.1.1 . 20001 }\n\t}\n\n\tset asking {\n\t\ttype uid\n\t}\n\tchain tenant {\n\t\taccept\n\t}\n}\n";
        let listed = read(listing);
        let entry = |text: &str| ("listeners", text.to_owned());
        assert_eq!(listed.elements, BTreeSet::from([entry("1 . 127.64.1.1 . 20001"), entry("2 . 127.64.1.2 . 20001")]));
        assert!(listed.chains.contains("chain tenant {\naccept\n}"), "{}", listed.chains);
        let other = read(&listing.replace("accept", "drop"));
        assert_ne!(listed.chains, other.chains);
    }
}
