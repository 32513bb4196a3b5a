//! Finds firewalls of others that stop what slots send. In nftables a packet must pass every table:
//! our accepting it does not help where another drops it, and other people's tables are not ours to
//! change. So this only tells; `doctor` and the log say what to do.

use crate::error::Result;
use crate::tool;

/// A chain of somebody else that drops what is forwarded unless one of its own rules allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignDrop {
    /// Family and name of its table, such as `ip filter`.
    pub table: String,
    /// The chain, such as `FORWARD`.
    pub chain: String,
}

/// The chains on the calling thread's namespace that hook `forward` with policy `drop` and are not
/// of a Nullspace server. Blocks for some milliseconds.
pub fn foreign_drops() -> Result<Vec<ForeignDrop>> {
    Ok(parse(&tool::nft_chains()?))
}

fn parse(listing: &str) -> Vec<ForeignDrop> {
    let (mut table, mut chain) = ("", "");
    let mut found = Vec::new();
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches([' ', '{']);
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches([' ', '{']);
        } else if line.contains(" hook forward ")
            && line.contains("policy drop")
            && !table.starts_with("inet nullspace_")
            && !table.starts_with("ip6 ")
        {
            found.push(ForeignDrop { table: table.into(), chain: chain.into() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_chain_of_another_that_drops_is_found_and_ours_is_not() {
        let listing = "\
table ip filter {
\tchain INPUT {
\t\ttype filter hook input priority filter; policy drop;
\t}
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
\tchain DOCKER-USER {
\t}
}
table inet nullspace_0a1b2c3d {
\tchain forward {
\t\ttype filter hook forward priority filter - 5; policy drop;
\t}
}
";
        assert_eq!(parse(listing), [ForeignDrop { table: "ip filter".into(), chain: "FORWARD".into() }]);
    }
}
