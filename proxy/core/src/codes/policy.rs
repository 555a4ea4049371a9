//! 07: who may do what.

use super::Seen::{AccessLog, Log};
use super::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        "ZG0701",
        "a deny rule matched",
        &[AccessLog],
        "A rule under `deny` is about this caller and request; deny wins over allow. `policy.rule` names its file and line.",
        "Change the rule if the caller should be let in.",
    ),
    entry(
        "ZG0702",
        "no allow rule matched",
        &[AccessLog],
        "Nothing is allowed unless a rule says so. `error` says which rule was nearest and what it lacks.",
        "Add what is missing to `allow` of the route if the caller should be let in; `policy: audit` lets a rollout be watched first.",
    ),
    entry(
        "ZG0703",
        "the listener does not accept that source address",
        &[AccessLog],
        "The caller's address is in none of the networks under `sources` of the listener; or the listener is behind load balancers, and who connected is in none under `proxyProtocol.trusted`.",
        "Add its network to `sources`, that of a load balancer to `proxyProtocol.trusted`, or have it use another listener.",
    ),
    entry(
        "ZG0704",
        "the caller's SPIFFE ID is on the deny list",
        &[AccessLog],
        "The file that `svid.files.denied` names holds its ID or a pattern that matches it. Open connections were ended.",
        "Take the line out of the file if the identity may be trusted again.",
    ),
    entry(
        "ZG0705",
        "a newer policy does not let the open connection go on",
        &[AccessLog],
        "It was let in by rules that have changed since, and is judged by those that hold.",
        "Nothing if that was meant; the generation in the line says which change it was.",
    ),
    entry(
        "ZG0706",
        "open connections rechecked",
        &[Log],
        "After a change of configuration or trust each open connection was judged again; the line says how many were ended.",
        "Nothing; the access log has a line with the reason for each that was ended.",
    ),
];
