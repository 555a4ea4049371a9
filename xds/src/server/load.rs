//! `envoy.service.load_stats.v3.LoadReportingService`: what clients say they carried, by cluster and
//! locality (P47).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterStats;
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsResponse;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::Status;

use super::read::claim;
use super::stream::Opened;
use super::wire::{Left, Taking, Telling, end, ended};
use super::{Shared, lock};
use crate::canonical;
use crate::client::counted;
use crate::pb;

/// How often a client is to report.
const EVERY: Duration = Duration::from_secs(10);
/// Until the first report, and between any two: after that a client counts as gone.
const REPORT: Duration = Duration::from_secs(60);
/// Bytes of a report.
const REPORT_BYTES_MAX: usize = 4 << 20;
/// Sums that are kept, of all gateways, clusters and localities.
const SUMS_MAX: usize = 100_000;
/// Of one gateway: three localities of each of ten thousand clusters.
const GATEWAY_SUMS_MAX: usize = 30_000;
/// Messages and texts in a report: one that is empty takes two bytes on the wire and hundreds in memory.
const PARTS_MAX: usize = 250_000;
/// How deep they stand: clusters, localities, endpoints, metrics, and what these hold.
const LEVELS: usize = 5;
/// Of a name in a report.
const NAME_BYTES_MAX: usize = 512;
/// Sums that a page shows.
const SHOWN_MAX: usize = 10_000;

/// Which load of a gateway it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Which {
    cluster: String,
    locality: String,
}

/// What was carried, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    issued: u64,
    succeeded: u64,
    failed: u64,
    /// Of the last report.
    in_progress: u64,
    dropped: u64,
}

/// All that was reported.
#[derive(Debug, Default)]
pub(super) struct Loads {
    /// By gateway; none of them has none.
    sums: BTreeMap<String, BTreeMap<Which, Load>>,
    total: Load,
    reports: u64,
    /// Of places that there was no room for.
    left_out: u64,
}

impl Loads {
    fn add(&mut self, gateway: &str, of: &ClusterStats) {
        let dropped = Load {
            dropped: of.total_dropped_requests,
            ..Default::default()
        };
        if dropped != Load::default() {
            self.count(gateway, &of.cluster_name, "", dropped);
        }
        for at in &of.upstream_locality_stats {
            let locality = at.locality.as_ref().map_or_else(String::new, |at| {
                let parts = [&at.region, &at.zone, &at.sub_zone].map(String::as_str);
                parts.join("/").trim_end_matches('/').to_owned()
            });
            let load = Load {
                issued: at.total_issued_requests,
                succeeded: at.total_successful_requests,
                failed: at.total_error_requests,
                in_progress: at.total_requests_in_progress,
                dropped: 0,
            };
            self.count(gateway, &of.cluster_name, &locality, load);
        }
    }

    fn count(&mut self, gateway: &str, cluster: &str, locality: &str, load: Load) {
        self.total.and(load);
        let which = Which {
            cluster: cluster.to_owned(),
            locality: locality.to_owned(),
        };
        let is_long = cluster.len().max(locality.len()) > NAME_BYTES_MAX;
        let of_gateway = self.sums.get_mut(gateway);
        let kept = of_gateway.as_ref().map_or(0, |sums| sums.len());
        if let Some(sum) = of_gateway.and_then(|sums| sums.get_mut(&which)) {
            sum.and(load);
        } else if is_long || kept >= GATEWAY_SUMS_MAX || self.len() >= SUMS_MAX {
            self.left_out += 1;
        } else {
            let sums = self.sums.entry(gateway.to_owned()).or_default();
            sums.entry(which).or_default().and(load);
        }
    }

    /// How many sums are kept.
    fn len(&self) -> usize {
        self.sums.values().map(BTreeMap::len).sum()
    }

    /// Forgets the sums of gateways other than these.
    pub(super) fn keep(&mut self, gateways: &BTreeSet<&str>) {
        self.sums
            .retain(|gateway, _| gateways.contains(gateway.as_str()));
    }

    pub(super) fn to_json(&self) -> Value {
        let all = self.sums.iter();
        let all = all.flat_map(|(gateway, sums)| sums.iter().map(move |sum| (gateway, sum)));
        let each = |(gateway, (which, load)): (&String, (&Which, &Load))| {
            json!({
                "gateway": gateway,
                "cluster": which.cluster,
                "locality": which.locality,
                "issued": load.issued,
                "succeeded": load.succeeded,
                "failed": load.failed,
                "inProgress": load.in_progress,
                "dropped": load.dropped,
            })
        };
        all.take(SHOWN_MAX).map(each).collect()
    }

    /// Values of metrics, in the order of their names.
    pub(super) fn to_values(&self) -> [u64; 6] {
        let Load {
            issued,
            succeeded,
            failed,
            dropped,
            in_progress: _,
        } = self.total;
        [
            self.reports,
            issued,
            succeeded,
            failed,
            dropped,
            self.left_out,
        ]
    }
}

impl Load {
    fn and(&mut self, more: Self) {
        let add = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        add(&mut self.issued, more.issued);
        add(&mut self.succeeded, more.succeeded);
        add(&mut self.failed, more.failed);
        add(&mut self.dropped, more.dropped);
        self.in_progress = more.in_progress;
    }
}

/// Takes reports until there are no more.
pub(super) async fn run(opened: Opened, taking: Taking) -> Left {
    let tell = opened.tell.clone();
    let status = take(opened).await.err().unwrap_or_else(ended);
    end(&tell, taking, status).await
}

async fn take(opened: Opened) -> Result<(), Status> {
    let Opened {
        shared,
        place,
        mut requests,
        tell,
        ..
    } = opened;
    let mut claimed = None;
    loop {
        let asked = requests.within(REPORT, "no report came", &tell).await?;
        let Some(report) = asked else {
            return Ok(());
        };
        if report.len() > REPORT_BYTES_MAX {
            let text = format!("a report of over {REPORT_BYTES_MAX} bytes");
            return Err(Status::resource_exhausted(text));
        }
        // Each time: it may be gone since, or not be for this caller any more.
        let of = match &claimed {
            Some(claim) => shared.view(claim, place.caller())?.gateway,
            None => {
                let node = field(&report, 1)
                    .next()
                    .ok_or_else(|| Status::invalid_argument("the first request names no node"))?;
                let claim = claim(node).map_err(|why| Status::invalid_argument(why.to_string()))?;
                let view = shared.view(&claim, place.caller())?;
                let first = LoadStatsResponse {
                    send_all_clusters: true,
                    load_reporting_interval: pb::duration(EVERY),
                    ..Default::default()
                };
                let first = Telling::Message(first.encode_to_vec().into());
                tell.try_send(first)
                    .map_err(|_gone| Status::cancelled("nobody reads"))?;
                claimed = Some(claim);
                view.gateway
            }
        };
        shared.reported(&of, &report)?;
        requests.done();
    }
}

impl Shared {
    fn reported(&self, gateway: &str, report: &Bytes) -> Result<(), Status> {
        if parts(report, LEVELS) > PARTS_MAX {
            let text = format!("a report of over {PARTS_MAX} parts");
            return Err(Status::resource_exhausted(text));
        }
        let stats = field(report, 2).map(ClusterStats::decode);
        let stats: Vec<ClusterStats> = (stats.collect::<Result<_, _>>())
            .map_err(|_broken| Status::invalid_argument("it is no LoadStatsRequest"))?;
        let mut loads = lock(&self.loads);
        // The first says who it is, and nothing was carried yet.
        loads.reports += u64::from(!stats.is_empty());
        for of in &stats {
            loads.add(gateway, of);
        }
        drop(loads);
        Ok(())
    }
}

/// How many parts there are on so many levels; it ends soon after there are too many.
fn parts(message: &[u8], levels: usize) -> usize {
    let mut rest = message;
    let mut count = 0;
    while count <= PARTS_MAX
        && let Some((_, inner)) = counted::next(&mut rest)
    {
        count += 1;
        if levels > 1 {
            count += parts(inner, levels - 1);
        }
    }
    count
}

/// The messages of a field.
fn field(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    let mut rest = message;
    let parts = std::iter::from_fn(move || canonical::next(&mut rest));
    parts.filter_map(move |part| (part.number == number).then_some(part.message?))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::Locality;
    use envoy_types::pb::envoy::config::endpoint::v3::UpstreamLocalityStats;

    use super::*;

    fn stats(cluster: &str, region: &str) -> ClusterStats {
        ClusterStats {
            cluster_name: cluster.to_owned(),
            total_dropped_requests: 1,
            upstream_locality_stats: vec![UpstreamLocalityStats {
                locality: Some(Locality {
                    region: region.to_owned(),
                    zone: "z".to_owned(),
                    ..Default::default()
                }),
                total_issued_requests: 5,
                total_successful_requests: 3,
                total_error_requests: 2,
                total_requests_in_progress: 4,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn p47_reports_are_summed_by_cluster_and_locality() {
        let mut loads = Loads::default();
        for _ in 0..2 {
            loads.add("east-gw", &stats("orders", "eu"));
        }
        let expected = json!([
            { "gateway": "east-gw", "cluster": "orders", "locality": "", "issued": 0, "succeeded": 0,
              "failed": 0, "inProgress": 0, "dropped": 2 },
            { "gateway": "east-gw", "cluster": "orders", "locality": "eu/z", "issued": 10, "succeeded": 6,
              "failed": 4, "inProgress": 4, "dropped": 0 },
        ]);
        assert_eq!(loads.to_json(), expected);
        assert_eq!(loads.to_values(), [0, 10, 6, 4, 2, 0]);
    }

    #[test]
    fn a_report_of_too_many_parts_is_not_decoded_wherever_they_stand() {
        use envoy_types::pb::envoy::config::endpoint::v3::{
            EndpointLoadMetricStats, UpstreamEndpointStats,
        };
        use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;

        let report = |stats: ClusterStats| {
            let report = LoadStatsRequest {
                node: None,
                cluster_stats: vec![stats],
            };
            report.encode_to_vec()
        };
        // The cluster; its name, its locality and a number; where that is and four numbers; two texts.
        assert_eq!(parts(&report(stats("orders", "!")), LEVELS), 11);
        let localities = report(ClusterStats {
            upstream_locality_stats: vec![UpstreamLocalityStats::default(); PARTS_MAX],
            ..Default::default()
        });
        let metrics = report(ClusterStats {
            upstream_locality_stats: vec![UpstreamLocalityStats {
                upstream_endpoint_stats: vec![UpstreamEndpointStats {
                    load_metric_stats: vec![EndpointLoadMetricStats::default(); PARTS_MAX],
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        });
        // What broke: an unknown group, over which the decoder goes, ended the counting.
        let mut grouped = vec![0xa3, 0x06, 0xa4, 0x06];
        grouped.extend([0x12, 0x00].repeat(PARTS_MAX));
        let behind = ClusterStats::decode(&*grouped).unwrap();
        assert_eq!(behind.upstream_locality_stats.len(), PARTS_MAX);
        let mut hidden = Vec::new();
        prost::encoding::bytes::encode(2, &grouped, &mut hidden);
        for report in [localities, metrics, hidden] {
            assert!(report.len() < REPORT_BYTES_MAX && parts(&report, LEVELS) > PARTS_MAX);
        }
    }

    #[test]
    fn so_many_sums_are_kept_and_what_there_is_no_room_for_is_counted() {
        let mut loads = Loads::default();
        let carried = Load {
            issued: 1,
            ..Default::default()
        };
        // One gateway leaves room for others.
        for nth in 0..=GATEWAY_SUMS_MAX {
            loads.count("a", &nth.to_string(), "", carried);
        }
        assert_eq!((loads.len(), loads.left_out), (GATEWAY_SUMS_MAX, 1));
        for gateway in ["b", "c", "d"] {
            for nth in 0..GATEWAY_SUMS_MAX {
                loads.count(gateway, &nth.to_string(), "", carried);
            }
        }
        let left_out = (1 + 4 * GATEWAY_SUMS_MAX - SUMS_MAX) as u64;
        assert_eq!((loads.len(), loads.left_out), (SUMS_MAX, left_out));
        loads.count("a", "0", "", carried);
        assert_eq!(loads.left_out, left_out);
        // What is gone leaves room too, and what it carried was carried.
        loads.keep(&["b", "d"].into());
        assert!(loads.len() < SUMS_MAX && loads.sums.keys().eq(["b", "d"]));
        assert_eq!(loads.total.issued, 2 + 4 * GATEWAY_SUMS_MAX as u64);
        loads.count("b", &"x".repeat(NAME_BYTES_MAX + 1), "", carried);
        assert_eq!(loads.left_out, left_out + 1);
    }
}
