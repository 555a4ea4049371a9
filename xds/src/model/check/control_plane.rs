//! Where a gateway's configuration comes from, if not from files.

use super::Checker;
use crate::control_address::ControlAddress;
use crate::error::Code;
use crate::model::MeshGateway;
use crate::model::scalar::Text;

/// More servers than this are no more use.
const ADDRESSES_MAX: usize = 8;

pub(super) fn check(check: &mut Checker<'_, MeshGateway>) {
    const ADDRESSES: &str = "spec.controlPlane.addresses";
    const IDS: &str = "spec.controlPlane.spiffeIDs";
    let Some(spec) = &check.document.spec.control_plane else {
        return;
    };
    if spec.addresses.is_empty() {
        check.key(
            Code::MissingField,
            ADDRESSES,
            "there are no servers".to_owned(),
            "write at least one, such as `https://xds.east.example:15012`",
        );
    }
    if spec.addresses.len() > ADDRESSES_MAX {
        check.key(
            Code::BadValue,
            ADDRESSES,
            format!("there are {} servers", spec.addresses.len()),
            "write at most 8",
        );
    }
    let is_tls = |address: &Text<ControlAddress>| matches!(address.0, ControlAddress::Tls(..));
    let has_tls = spec.addresses.iter().any(is_tls);
    if has_tls && spec.spiffe_ids.is_empty() {
        check.key(
            Code::Unsafe,
            IDS,
            "nobody is expected to answer".to_owned(),
            "write the SPIFFE IDs of its servers, such as `spiffe://east.example/zeugma/xds`",
        );
    }
    if !has_tls && !spec.addresses.is_empty() && !spec.spiffe_ids.is_empty() {
        check.no_effect(
            IDS,
            "nobody shows an identity in plaintext",
            "remove it, or write `https://` addresses",
        );
    }
}
