//! The images of an evaluation, and their rows of the denoiser's inputs side by side.

use super::denoise_loop::{ImageInFlight, LatentSize, LoopSpec, RowAxis};
use super::tensors::TensorData;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::memory;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// The values of one image for an input, and its rows.
pub(super) type Part<'a> = (TensorData<'a>, usize);

/// Checks the images of an evaluation: their inputs, that their rows are together as many as the graph's, and that they have the same of
/// what all rows share.
///
/// # Errors
/// [`Error::Graph`].
pub(super) fn check(graph: &Graph, spec: &LoopSpec, images: &[&mut ImageInFlight]) -> Result<()> {
    let (rows, given) = (LatentSize::of(graph).rows, images.iter().map(|image| image.rows()).sum::<usize>());
    if given != rows {
        return Err(Error::Graph(format!("denoise loop: images of {given} rows, {rows} are needed")));
    }
    for image in images.iter() {
        match image.state {
            None => image.inputs.check(graph, spec)?,
            Some(_) => image.inputs.check_inputs(graph, spec)?,
        }
        if image.is_finished() {
            return Err(Error::Graph("denoise loop: an image has no more steps".into()));
        }
    }
    let Some((first, others)) = images.split_first() else { return Ok(()) };
    for (k, (name, _)) in graph.inputs.iter().enumerate() {
        let mine = &first.inputs.inputs[k];
        for other in others.iter().map(|image| &image.inputs.inputs[k]) {
            let shared = spec.row_axis(k) == RowAxis::Shared && !Arc::ptr_eq(mine, other);
            if shared && mine.to_host()? != other.to_host()? {
                return Err(Error::Graph(format!("denoise loop: images with other values of `{name}`")));
            }
        }
    }
    Ok(())
}

/// Whether the values of the images serve as they are: all rows share them, or there is one image whose rows are as long as the graph's.
pub(super) fn is_direct(graph: &Graph, spec: &LoopSpec, images: &[&mut ImageInFlight], k: usize) -> bool {
    let image = &images[0];
    let given = image.inputs.inputs[k].len() / image.inputs.rows * image.rows();
    let whole = spec.varying.contains(&k) || given == graph.node(graph.inputs[k].1).len();
    spec.row_axis(k) == RowAxis::Shared || images.len() == 1 && whole
}

/// An image's values of input `k` in its next step.
pub(super) fn part<'a>(graph: &Graph, spec: &LoopSpec, image: &'a ImageInFlight, k: usize) -> Result<Part<'a>> {
    let (given, rows) = (image.inputs.rows, image.rows());
    let values = image.inputs.inputs[k].to_host()?;
    let mut range = 0..values.len();
    if spec.varying.contains(&k) {
        let len = spec.values(graph, k, given);
        range = image.done * len..(image.done + 1) * len;
    }
    match spec.row_axis(k) {
        RowAxis::First => range.end = range.start + range.len() / given * rows,
        RowAxis::Last if rows < given => return Ok((last_rows(&values.slice(range), given, 0..rows)?, rows)),
        RowAxis::Last | RowAxis::Shared => {}
    }
    if range == (0..values.len()) {
        return Ok((values, rows));
    }
    let values = match values {
        TensorData::F32(Cow::Borrowed(all)) => (&all[range]).into(),
        TensorData::I32(Cow::Borrowed(all)) => (&all[range]).into(),
        TensorData::F32(Cow::Owned(all)) => all[range].to_vec().into(),
        TensorData::I32(Cow::Owned(all)) => all[range].to_vec().into(),
    };
    Ok((values, rows))
}

/// Some of the `rows` rows of an input.
///
/// # Errors
/// [`Error::Graph`] for integers whose rows are the last dimension.
pub(super) fn rows_of<'a>(
    values: &'a TensorData<'_>,
    (axis, rows): (RowAxis, usize),
    some: Range<usize>,
) -> Result<TensorData<'a>> {
    let each = values.len() / rows.max(1);
    match axis {
        RowAxis::First => Ok(values.slice(some.start * each..some.end * each)),
        RowAxis::Last => last_rows(values, rows, some),
        RowAxis::Shared => Ok(values.view()),
    }
}

/// Some of `rows` rows that are the last dimension.
fn last_rows(values: &TensorData<'_>, rows: usize, some: Range<usize>) -> Result<TensorData<'static>> {
    let TensorData::F32(all) = values else {
        return Err(Error::Graph("denoise loop: integers whose rows are the last dimension".into()));
    };
    let taken: Vec<f32> = all.chunks_exact(rows).flat_map(|each| &each[some.clone()]).copied().collect();
    Ok(taken.into())
}

/// Puts the parts of several images side by side in values for an input of `len` values and `rows` rows; those of `to`, where they are
/// given, are overwritten.
///
/// # Errors
/// [`Error::Memory`].
pub(super) fn joined(
    to: Option<TensorData<'static>>,
    (len, axis, rows): (usize, RowAxis, usize),
    parts: &[Part<'_>],
) -> Result<TensorData<'static>> {
    let mut values = match to {
        Some(values) => values,
        None => {
            let integer = matches!(parts.first(), Some((TensorData::I32(_), _)));
            let hint = || "let fewer images share an evaluation".into();
            match integer {
                true => memory::zeroed::<i32>("denoise", len, len as u64 * 4, hint)?.into(),
                false => memory::zeroed::<f32>("denoise", len, len as u64 * 4, hint)?.into(),
            }
        }
    };
    match &mut values {
        TensorData::F32(to) => join(to.to_mut(), axis, rows, parts.iter().filter_map(floats)),
        TensorData::I32(to) => join(to.to_mut(), axis, rows, parts.iter().filter_map(integers)),
    }
    Ok(values)
}

fn floats<'a>((values, rows): &'a Part<'_>) -> Option<(&'a [f32], usize)> {
    if let TensorData::F32(values) = values { Some((values, *rows)) } else { None }
}

fn integers<'a>((values, rows): &'a Part<'_>) -> Option<(&'a [i32], usize)> {
    if let TensorData::I32(values) = values { Some((values, *rows)) } else { None }
}

/// Puts the rows of several images side by side in an input of `rows` rows.
fn join<'a, T: Copy + 'a>(to: &mut [T], axis: RowAxis, rows: usize, parts: impl Iterator<Item = (&'a [T], usize)>) {
    let (mut first, each) = (0, to.len() / rows);
    for (from, count) in parts {
        match axis {
            RowAxis::First => {
                let len = from.len() / count;
                for (to, from) in to[first * each..].chunks_exact_mut(each.max(1)).zip(from.chunks_exact(len.max(1))) {
                    to[..len].copy_from_slice(from);
                }
            }
            RowAxis::Last => {
                for (to, from) in to.chunks_exact_mut(rows).zip(from.chunks_exact(count)) {
                    to[first..first + count].copy_from_slice(from);
                }
            }
            RowAxis::Shared => to.copy_from_slice(from),
        }
        first += count;
    }
}
