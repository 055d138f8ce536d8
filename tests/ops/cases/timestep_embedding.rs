//! Sines and cosines of times and sizes.

use crate::table::{Case, CaseBuilder, operation};

fn case(channels: usize, flip: bool, shift: f32) -> Case {
    let half = channels / 2;
    let mut c = CaseBuilder::new(format!("timesteps to {channels}, flip {flip}, shift {shift}"));
    // What f16 could not hold: 1023.5, 4097.
    let (ti, t) = c.given("t", &[2, 3], vec![0.0, 1.0, 999.0, 1023.5, 512.25, 4097.0]);
    let y = c.graph.timestep_embedding(ti, channels, flip, shift);
    let frequency = |i: usize| (-(10000f64.ln()) * i as f64 / (half as f64 - f64::from(shift))).exp();
    let element = |t: f64, j: usize| {
        let angle = t * frequency(j % half);
        if (j < half) == flip { angle.cos() } else { angle.sin() }
    };
    // The angle in f32: 4097 and its 24 bits leave 2.4e-4 of a radian.
    c.f32_error(2e-5);
    c.output(y, t.iter().flat_map(|t| (0..channels).map(|j| element(*t, j)).collect::<Vec<_>>()).collect());
    c.finish()
}

// The second has more than one block.
operation!([case(32, true, 0.0), case(320, false, 1.0)]);
