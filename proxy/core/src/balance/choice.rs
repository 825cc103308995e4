//! Among which endpoints is chosen: those that are healthy, not tried yet, near, and not too young.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hash::mix;
use crate::config::{Distance, Endpoint, Service};
use crate::error::Fault;

/// So much more than its share may what is near carry: a zone of which half is gone keeps seven in ten of its callers.
const SPARE: f64 = 1.4;
/// What an endpoint gets of its share at least when it has just joined.
const LEAST: f64 = 0.1;

/// Who is healthy, of all. In panic (fewer than the policy's share) all count as healthy; by default where none is left
/// those count that are not ejected. A fault: nobody is there to be called.
pub fn healthy(
    service: &Service,
    is_away: impl Fn(&Endpoint) -> bool,
    is_ejected: impl Fn(&Endpoint) -> bool,
) -> Result<Vec<&Arc<Endpoint>>, Fault> {
    let all = &service.endpoints;
    if all.is_empty() {
        return Err(Fault::NoEndpoint);
    }
    let in_place: Vec<_> = all.iter().filter(|endpoint| !is_ejected(endpoint)).collect();
    let healthy: Vec<_> = in_place.iter().copied().filter(|endpoint| !is_away(endpoint)).collect();
    match healthy.len() as f64 {
        count if count < service.traffic.panic * all.len() as f64 => Ok(all.iter().collect()),
        0.0 if in_place.is_empty() => Err(Fault::Ejected),
        0.0 => Ok(in_place),
        _ => Ok(healthy),
    }
}

/// This host's, then this zone's, then the others: each group is stayed with by the capacity that it has left, which is its
/// healthy share and [`SPARE`].
pub fn near<'a>(service: &Service, from: Vec<&'a Arc<Endpoint>>, random: u64) -> Vec<&'a Arc<Endpoint>> {
    let groups = [Distance::Host, Distance::Zone, Distance::Far];
    let count = |endpoints: &mut dyn Iterator<Item = &Arc<Endpoint>>, distance: Distance| {
        endpoints.filter(|endpoint| endpoint.distance == distance).count() as f64
    };
    let mut taken = None;
    for (step, distance) in groups.into_iter().enumerate() {
        let left = count(&mut from.iter().copied(), distance);
        if left == 0.0 {
            continue;
        }
        taken = Some(distance);
        let share = SPARE * left / count(&mut service.endpoints.iter(), distance);
        if chance(random, step as u64) < share {
            break;
        }
    }
    let in_group = |endpoint: &&Arc<Endpoint>| Some(endpoint.distance) == taken;
    from.into_iter().filter(in_group).collect()
}

/// Leaves young endpoints out, the more often the younger they are: their share grows with their age.
pub fn grown(from: Vec<&Arc<Endpoint>>, over: Duration, now: Instant, random: u64) -> Vec<&Arc<Endpoint>> {
    let is_in = |endpoint: &&Arc<Endpoint>| {
        let Some(joined) = endpoint.joined.get() else {
            return true;
        };
        let age = now.saturating_duration_since(*joined).as_secs_f64() / over.as_secs_f64();
        chance(random, endpoint.id) < age.max(LEAST)
    };
    let grown: Vec<_> = from.iter().copied().filter(is_in).collect();
    if grown.is_empty() { from } else { grown }
}

/// 0..1, of the request's random number and what it is about.
fn chance(random: u64, about: u64) -> f64 {
    (mix(random ^ mix(about)) >> 11) as f64 / (1u64 << 53) as f64
}
