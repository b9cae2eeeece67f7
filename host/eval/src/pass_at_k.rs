//! pass@k from several answers per row.

use std::collections::BTreeMap;

/// The probability that at least one of k answers drawn from n, c of which are right, is right: 1 - C(n-c, k) / C(n, k). Unbiased for the
/// probability under the model (Chen et al., "Evaluating Large Language Models Trained on Code", 2021).
pub(crate) fn estimate(n: u32, c: u32, k: u32) -> f64 {
    if n.saturating_sub(c) < k {
        return 1.0;
    }
    // C(n-c, k) / C(n, k) as a product, which neither overflows nor loses digits.
    let none_right: f64 = (n - c + 1..=n).map(|i| 1.0 - f64::from(k) / f64::from(i)).product();
    1.0 - none_right
}

/// Which k a report shows for n answers: powers of two, and n itself.
pub(crate) fn shown(n: u32) -> Vec<u32> {
    let mut all: Vec<u32> = std::iter::successors(Some(1u32), |k| k.checked_mul(2)).take_while(|k| *k < n).collect();
    all.push(n);
    all
}

/// Means over rows, each given as the number of its answers and how many of them are right.
pub(crate) fn table(rows: &[(u32, u32)]) -> BTreeMap<String, f64> {
    let Some(n) = rows.iter().map(|r| r.0).min().filter(|n| *n > 1) else { return BTreeMap::new() };
    let mean = |k: u32| rows.iter().map(|(n, c)| estimate(*n, *c, k)).sum::<f64>() / rows.len() as f64;
    shown(n).into_iter().map(|k| (k.to_string(), mean(k))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(n: u32, k: u32) -> f64 {
        (0..k).map(|i| f64::from(n - i) / f64::from(i + 1)).product()
    }

    #[test]
    fn it_is_the_share_of_subsets_with_a_right_answer() {
        for n in 1..=10u32 {
            for c in 0..=n {
                for k in 1..=n {
                    let expected = if n - c < k { 1.0 } else { 1.0 - choose(n - c, k) / choose(n, k) };
                    assert!((estimate(n, c, k) - expected).abs() < 1e-12, "{n} {c} {k}");
                    // By counting: subsets as bit masks, the first c answers being right.
                    let (mut hits, mut all) = (0u32, 0u32);
                    for subset in 0u32..1 << n {
                        if subset.count_ones() == k {
                            all += 1;
                            hits += u32::from(subset & ((1 << c) - 1) != 0);
                        }
                    }
                    assert!((expected - f64::from(hits) / f64::from(all)).abs() < 1e-12);
                }
            }
        }
        assert_eq!(estimate(1000, 1, 1000), 1.0);
        assert!((estimate(1000, 10, 1) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn tables_have_powers_of_two_and_the_number_of_answers() {
        assert_eq!(shown(1), [1]);
        assert_eq!(shown(5), [1, 2, 4, 5]);
        assert_eq!(shown(8), [1, 2, 4, 8]);
        let table = table(&[(2, 1), (2, 0)]);
        assert_eq!(table.into_iter().collect::<Vec<_>>(), [("1".to_owned(), 0.25), ("2".to_owned(), 0.5)]);
        assert!(super::table(&[(1, 1)]).is_empty());
    }
}
