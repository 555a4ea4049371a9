//! What the service manager is told (sd_notify(3)); nothing where there is none.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::pulse::Pulses;
use crate::runtime::Shared;

/// Tells it all of these at once.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!(code = "ZG0951", %error, "systemd is not told: {states:?}");
    }
}

/// Ready for work, or for work again after [`reloading`].
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Not ready yet, and alive: it is given that long to tell so again, or to be ready.
pub(super) fn waiting(longest: Duration) {
    let microseconds = u32::try_from(longest.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
}

/// The configuration is being loaded anew; its next word is [`ready`].
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(code = "ZG0951", %error, "systemd is not told of reloading"),
    }
}

/// No new work.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// From here on the service is that process.
pub(super) fn main_pid(pid: i32) {
    // 0 is a process that cannot be named: in another PID namespace.
    if let Some(pid) = u32::try_from(pid).ok().filter(|pid| *pid > 0) {
        tell(&[NotifyState::MainPid(pid)]);
    }
}

/// Tells it that all is well, as often as it asked for (sd_watchdog_enabled(3)), while every worker's
/// event loop turns; that the control thread's does is seen by its being told.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut microseconds = 0;
    if sd_notify::watchdog_enabled(false, &mut microseconds) {
        let within = Duration::from_micros(microseconds);
        keep_telling(&shared.pulses, within, || tell(&[NotifyState::Watchdog])).await;
    }
}

async fn keep_telling(pulses: &Pulses, within: Duration, mut tell: impl FnMut()) {
    // Half of it, as the manual advises; a period of zero is none.
    let mut every = tokio::time::interval((within / 2).max(Duration::from_millis(1)));
    loop {
        every.tick().await;
        match pulses.stalled() {
            0 => tell(),
            stalled => tracing::error!(
                code = "ZG0907",
                stalled,
                "workers do not turn: a defect of the gateway; systemd is not told that all is well"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_told_twice_in_its_time_and_not_while_a_worker_is_stalled() {
        let pulses = Pulses::new();
        let mut told = 0;
        let within = Duration::from_secs(20);
        let all_is_well = async {
            tokio::select! {
                () = pulses.give() => {}
                () = tokio::time::sleep(Duration::from_secs(61)) => {}
            }
        };
        tokio::select! {
            () = keep_telling(&pulses, within, || told += 1) => {}
            () = all_is_well => {}
        }
        assert_eq!(told, 7, "at once, and every 10 s");

        let stuck = pulses.join();
        tokio::time::sleep(Duration::from_secs(6)).await;
        tokio::select! {
            () = keep_telling(&pulses, within, || told += 1) => {}
            () = tokio::time::sleep(Duration::from_secs(61)) => {}
        }
        assert_eq!(told, 7);
        drop(stuck);
    }
}
