//! Evenly spaced numbers with numpy's and torch's rounding.

/// numpy's `linspace(start, stop, n)`, both ends included.
pub(super) fn linspace(start: f64, stop: f64, n: usize) -> Vec<f64> {
    if n < 2 {
        return vec![start; n];
    }
    let step = (stop - start) / (n - 1) as f64;
    let mut values: Vec<f64> = (0..n).map(|i| i as f64 * step + start).collect();
    values[n - 1] = stop;
    values
}

/// torch's f32 `linspace` on the CPU: fused multiply-adds, counted from whichever end is nearer.
pub(super) fn linspace_f32(start: f32, stop: f32, n: usize) -> Vec<f32> {
    if n < 2 {
        return vec![start; n];
    }
    let step = (stop - start) / (n - 1) as f32;
    let value = |i: usize| {
        if i < n / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((n - 1 - i) as f32, stop) }
    };
    (0..n).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torch_linspace() {
        let values = linspace_f32(0.00085f64.sqrt() as f32, 0.012f64.sqrt() as f32, 1000);
        let bits = [0, 1, 333, 499, 500, 777, 999].map(|i: usize| values[i].to_bits());
        // torch.linspace(...).view(torch.int32) of torch 2.11
        let torch = [1022285302, 1022328504, 1030040892, 1032712726, 1032723526, 1035715273, 1038112991];
        assert_eq!(bits, torch);
    }
}
