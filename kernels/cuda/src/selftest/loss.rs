//! Cross-entropy with its gradient, gathered and scattered rows, the greedy token.

use super::{BF16, CheckError, Checks, Outcome};
use crate::launch::RowSet;
use half::bf16;

/// Loss and `factor * (softmax - onehot)` in f64.
fn reference(logits: &[f32], target: usize, factor: f32) -> (f64, Vec<f32>) {
    let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|&x| (f64::from(x) - top).exp()).sum();
    let gradient = logits.iter().enumerate().map(|(i, &x)| {
        let hit = f64::from(u8::from(i == target));
        (f64::from(factor) * ((f64::from(x) - top).exp() / total - hit)) as f32
    });
    let wanted = logits.get(target).copied().map_or(f64::NAN, f64::from);
    (top + total.ln() - wanted, gradient.collect())
}

impl Checks<'_> {
    pub(super) fn all_loss(&mut self) -> Outcome<()> {
        for (rows, vocab) in [(1, 1), (3, 5), (7, 127), (130, 1003), (5, 4096), (33, 32000), (9, 151_936), (2, 151_937)] {
            self.check_cross_entropy(rows, vocab, 6.0)?;
        }
        // Nearly certain, and so spread that the sum runs into many decades.
        self.check_cross_entropy(9, 151_936, 60.0)?;
        self.check_cross_entropy(9, 151_936, 0.01)?;
        for (rows, vocab) in [(1, 1), (3, 5), (64, 1003), (33, 151_936)] {
            self.check_argmax(rows, vocab)?;
        }
        for (count, width) in [(1, 8), (127, 136), (1000, 4096)] {
            self.check_rows(count, width)?;
        }
        Ok(())
    }

    fn check_cross_entropy(&mut self, rows: usize, vocab: usize, spread: f32) -> Outcome<()> {
        if self.large(rows * vocab) {
            return Ok(());
        }
        let (d, first) = (self.device, 3);
        let logits: Vec<f32> = self.random.values(rows * vocab).into_iter().map(|x| x * spread).collect();
        let targets: Vec<u32> = (0..rows + first).map(|_| self.random.below(vocab as u64) as u32).collect();
        let factors: Vec<f32> = self.random.values(rows + first);
        let (mut want_loss, mut want) = (vec![f32::NAN; first], Vec::with_capacity(rows * vocab));
        for (row, logits) in logits.chunks(vocab).enumerate() {
            let (target, factor) = (targets.get(row + first).copied().unwrap_or(0), factors.get(row + first).copied().unwrap_or(0.0));
            let (loss, gradient) = reference(logits, target as usize, factor);
            want_loss.push(loss as f32);
            want.extend(gradient);
        }
        let shape = format!("{rows}x{vocab} spread {spread}");
        let (card, targets, factors) = (d.floats(&logits)?, d.upload(&targets, "targets")?, d.floats(&factors)?);
        for with_gradient in [true, false] {
            let mut losses = self.poison_floats(rows + first)?;
            let mut dlogits = d.upload(&vec![bf16::NAN; rows * vocab], "the gradient of logits")?;
            let gradient = with_gradient.then_some(&mut dlogits);
            d.cross_entropy_rows(rows, vocab, &card, &targets, &factors, first, &mut losses, gradient)?;
            let (got, untouched) = (losses.read()?, first);
            if got.iter().take(untouched).any(|v| !v.is_nan()) {
                return Err(CheckError::Other("cross_entropy_rows wrote before its first row".into()));
            }
            let (got, want_loss) = (got.get(first..).unwrap_or(&[]), want_loss.get(first..).unwrap_or(&[]));
            self.note("cross_entropy loss", shape.clone(), got, want_loss, 2e-6);
            if with_gradient {
                let got: Vec<f32> = dlogits.read()?.into_iter().map(bf16::to_f32).collect();
                self.note("cross_entropy gradient", shape.clone(), &got, &want, BF16);
            }
        }
        Ok(())
    }

    fn check_argmax(&mut self, rows: usize, vocab: usize) -> Outcome<()> {
        if self.large(rows * vocab) {
            return Ok(());
        }
        let d = self.device;
        // Few values, so that there are ties; all negative in the first row.
        let mut logits: Vec<f32> = (0..rows * vocab).map(|_| self.random.below(40_000) as f32 / 100.0 - 200.0).map(f32::floor).collect();
        logits.iter_mut().take(vocab).for_each(|x| *x -= 500.0);
        let mut want: Vec<f32> = logits
            .chunks(vocab)
            .map(|row| {
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                row.iter().position(|&x| x == top).unwrap_or(0) as f32
            })
            .collect();
        // The last row has nothing to choose.
        if rows > 1 {
            logits.iter_mut().skip((rows - 1) * vocab).for_each(|x| *x = f32::NEG_INFINITY);
            want.pop();
            want.push(u32::MAX as f32);
        }
        let mut out = d.zeros(rows, "tokens")?;
        d.logits_argmax(rows, vocab, &d.floats(&logits)?, &mut out)?;
        let got: Vec<f32> = out.read()?.into_iter().map(|t| t as f32).collect();
        self.note("logits_argmax", format!("{rows}x{vocab}"), &got, &want, 0.0);
        Ok(())
    }

    fn check_rows(&mut self, count: usize, width: usize) -> Outcome<()> {
        if self.large(count * width) {
            return Ok(());
        }
        let (d, all, first) = (self.device, 2 * count + 1, 2);
        // Every other row from the last on: none twice.
        let numbers: Vec<u32> = [7, 7].into_iter().chain((0..count).map(|i| (all - 1 - 2 * i) as u32)).collect();
        let values = self.random.values(all * width);
        let picked: Vec<f32> = numbers
            .iter()
            .skip(first)
            .flat_map(|&r| values.get(r as usize * width..(r as usize + 1) * width).unwrap_or(&[]))
            .copied()
            .collect();
        let card = d.upload(&numbers, "row numbers")?;
        let set = RowSet { rows: &card, first, count, largest: (all - 1) as u32 };
        let ((from, _gap), (mut to, _other)) = (self.apart(width, 8, &values)?, self.apart(width, 16, &vec![f32::NAN; count * width])?);
        d.gather_rows(set, &from, &mut to)?;
        self.note("gather_rows", format!("{count}x{width}"), &d.read_tensor(count, &to)?, &picked, 0.0);
        let mut back = d.tensor(width, &vec![0.0; all * width])?;
        d.scatter_rows(set, &to, &mut back)?;
        let mut want = values;
        for (r, row) in want.chunks_mut(width).enumerate() {
            if !(all - 1 - r).is_multiple_of(2) || r == 0 {
                row.fill(0.0);
            }
        }
        self.note("scatter_rows", format!("{count}x{width}"), &d.read_tensor(all, &back)?, &want, 0.0);
        let outside = RowSet { largest: all as u32, ..set };
        if d.gather_rows(outside, &from, &mut to).is_ok() || d.scatter_rows(outside, &to, &mut back).is_ok() {
            return Err(CheckError::Other("a row outside of the tensor was accepted".into()));
        }
        Ok(())
    }
}
