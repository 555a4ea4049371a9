//! Which level of the snapshot before a level is, however it is called now.

use std::collections::BTreeMap;

use crate::snapshot::{Cluster, EndpointKey, Level};

use super::ClusterState;
use super::level::LevelState;

/// The clusters of the snapshot before, as they are looked for.
pub(super) struct Known<'a> {
    pub(super) by_name: BTreeMap<&'a str, &'a ClusterState>,
    pub(super) by_route: BTreeMap<&'a str, Vec<&'a ClusterState>>,
}

impl<'a> Known<'a> {
    pub(super) fn new(clusters: &'a [ClusterState]) -> Self {
        let mut known = Self {
            by_name: BTreeMap::new(),
            by_route: BTreeMap::new(),
        };
        for state in clusters {
            known.by_name.entry(&state.cluster.name).or_insert(state);
            let of_route = known.by_route.entry(&state.cluster.route).or_default();
            of_route.push(state);
        }
        known
    }

    /// The states that levels of `cluster` had, those of itself first.
    pub(super) fn levels_like(&self, cluster: &Cluster) -> Vec<Option<LevelState>> {
        let itself = self.by_name.get(&*cluster.name);
        let mut found = itself.map_or_else(Vec::new, |state| state.levels_like(cluster));
        found.resize(cluster.levels.len(), None);
        if found.iter().any(Option::is_none) {
            let others: Vec<_> = (self.by_route.get(&*cluster.route).into_iter().flatten())
                .map(|state| state.levels_like(cluster))
                .collect();
            for (at, found) in found
                .iter_mut()
                .enumerate()
                .filter(|(_, found)| found.is_none())
            {
                *found = (others.iter().rev())
                    .filter_map(|levels| levels.get(at).cloned().flatten())
                    .max_by_key(|(likeness, _)| *likeness);
            }
        }
        (found.into_iter())
            .map(|found| found.map(|(_, state)| state))
            .collect()
    }
}

impl ClusterState {
    /// For each level of `cluster`, this one's that is likest, and how like it is.
    ///
    /// What a level is called says only where its endpoints stand: it changes with every rack that
    /// comes and goes. Most of its endpoints stay.
    fn levels_like(&self, cluster: &Cluster) -> Vec<Option<(Likeness, LevelState)>> {
        let mut level_of: BTreeMap<&EndpointKey, usize> = BTreeMap::new();
        for (at, level) in self.cluster.levels.iter().enumerate() {
            let keys = (level.members.iter()).map(|ix| &self.cluster.endpoint(*ix).key);
            level_of.extend(keys.map(|key| (key, at)));
        }
        let nth_of_name = |levels: &[Level], at: usize| {
            let name = levels.get(at).map(|level| &level.name);
            let before = levels.iter().take(at);
            before.filter(|level| Some(&level.name) == name).count()
        };
        let likest = |(at, level): (usize, &Level)| {
            let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
            for ix in &level.members {
                if let Some(at) = level_of.get(&cluster.endpoint(*ix).key) {
                    *shared.entry(*at).or_default() += 1;
                }
            }
            let nth = nth_of_name(&cluster.levels, at);
            (self.cluster.levels.iter().zip(&self.levels).enumerate())
                .map(|(ix, (known, state))| {
                    let likeness = Likeness {
                        shared: shared.get(&ix).copied().unwrap_or_default(),
                        named: known.name == level.name
                            && nth_of_name(&self.cluster.levels, ix) == nth,
                    };
                    (likeness, state.clone())
                })
                .filter(|(likeness, _)| *likeness > Likeness::default())
                // Of several that are as like, the first.
                .rev()
                .max_by_key(|(likeness, _)| *likeness)
        };
        cluster.levels.iter().enumerate().map(likest).collect()
    }
}

/// How like two levels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Likeness {
    /// How many endpoints are in both.
    shared: usize,
    /// Whether they are called the same; of several with one name, the same in order.
    named: bool,
}
