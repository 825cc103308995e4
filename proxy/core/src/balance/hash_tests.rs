//! How many keys move, that keys are spread, and that the bound holds.

use proptest::prelude::*;

use super::*;

const KEYS: u64 = 10_000;

fn endpoints(count: u64) -> Vec<(u64, u32)> {
    (0..count)
        .map(|host| (digest([b"inventory", format!("h{host}").as_bytes()]), 0))
        .collect()
}

fn owner(key: u64, endpoints: &[(u64, u32)]) -> u64 {
    let key = digest([format!("user-{key}").as_bytes()]);
    endpoints[pick(key, endpoints, None).expect("one")].0
}

#[test]
fn an_endpoint_that_leaves_moves_its_own_keys_only() {
    for count in [2, 3, 5, 10, 50] {
        let before = endpoints(count);
        for gone in [0, count as usize - 1] {
            let mut after = before.clone();
            let (left, _) = after.remove(gone);
            let moved: Vec<u64> = (0..KEYS)
                .filter(|key| owner(*key, &before) != owner(*key, &after))
                .collect();
            assert!(moved.iter().all(|key| owner(*key, &before) == left));
            assert!(
                (moved.len() as u64) < 2 * KEYS / count,
                "{} of {KEYS} keys moved from one of {count}",
                moved.len()
            );
        }
    }
}

#[test]
fn keys_are_spread() {
    let all = endpoints(10);
    let mut counts = std::collections::HashMap::<u64, u64>::new();
    (0..KEYS).for_each(|key| *counts.entry(owner(key, &all)).or_default() += 1);
    // 1,000 each is the mean; a standard deviation is 30.
    assert!(counts.values().all(|count| (880..1120).contains(count)), "{counts:?}");
    assert_eq!(pick(1, &[], None), None);
}

struct Lines(Vec<(&'static str, &'static str)>);

impl Headers for Lines {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let lines = self.0.iter().filter(|(known, _)| *known == name);
        lines.for_each(|(_, value)| see(value.as_bytes()));
    }

    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8])) {
        let lines = self.0.iter();
        lines.for_each(|(name, value)| see(name.as_bytes(), value.as_bytes()));
    }
}

#[test]
fn what_a_request_is_told_apart_by() {
    let here: IpAddr = "198.18.0.1".parse().expect("an address");
    let headers = Lines(vec![
        ("x-user", "7"),
        ("cookie", "a=1; session=s7;b=session=x"),
        ("cookie", "late=2"),
    ]);
    let of = |on| key(&on, &headers, here);
    assert_eq!(of(HashOn::Header("x-user".into())), Some(digest([b"7"])));
    assert_eq!(of(HashOn::Header("x-other".into())), None);
    assert_eq!(of(HashOn::Cookie("session".into())), Some(digest([b"s7"])));
    assert_eq!(of(HashOn::Cookie("late".into())), Some(digest([b"2"])));
    assert_eq!(of(HashOn::Cookie("ession".into())), None);
    let mapped: IpAddr = "::ffff:198.18.0.1".parse().expect("an address");
    assert_eq!(of(HashOn::Source), Some(source_key(mapped)), "the same address");
}

proptest! {
    /// Whatever keys come and stay: nobody has more in flight than the bound, and the order of the endpoints is no matter.
    #[test]
    fn the_bound_holds(keys in proptest::collection::vec(0u64..3, 1..300), count in 1u64..20, bound in 1.0f64..3.0) {
        let mut all = endpoints(count);
        for (placed, key) in keys.iter().enumerate() {
            let index = pick(mix(*key), &all, Some(bound)).expect("one has room");
            all[index].1 += 1;
            let room = (bound * (placed as f64 + 1.0) / count as f64).ceil();
            prop_assert!(f64::from(all[index].1) <= room, "{} of {room}", all[index].1);
        }
        let mut reversed = all.clone();
        reversed.reverse();
        let by_id = |endpoints: &[(u64, u32)]| pick(7, endpoints, None).map(|index| endpoints[index].0);
        prop_assert_eq!(by_id(&all), by_id(&reversed));
    }
}
