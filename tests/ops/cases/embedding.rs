//! Rows of tables: embeddings with positions, a class token before them, one row of each image, a table for each image.

use crate::reference::{Norm, linear};
use crate::table::{Case, CaseBuilder, operation};

/// Row `id`, the first or the last, plus that of its position.
fn embedded(table: &[f64], positions: &[f64], ids: &[i32], (c, tokens): (usize, usize)) -> Vec<f64> {
    let last = table.len() / c - 1;
    let element = |at: usize, j: usize| {
        table[usize::try_from(ids[at]).unwrap_or(0).min(last) * c + j] + positions[at % tokens * c + j]
    };
    (0..ids.len()).flat_map(|at| (0..c).map(move |j| (at, j))).map(|(at, j)| element(at, j)).collect()
}

fn picked(x: &[f64], index: &[i32], (c, tokens): (usize, usize)) -> Vec<f64> {
    let row = |(image, at): (usize, &i32)| x[(image * tokens + *at as usize) * c..][..c].to_vec();
    index.iter().enumerate().flat_map(row).collect()
}

fn tables(c: usize) -> Case {
    let size @ (_, tokens) = (c, 3);
    let mut b = CaseBuilder::new(format!("tables of {c} channels"));
    // In parts, as with vectors of textual inversions behind the vocabulary.
    let table = [b.weight("table", &[7, c], 1), b.weight("added", &[3, c], 5)].concat();
    let positions = b.weight("positions", &[4, c], 2);
    let (token, places) = (b.weight("token", &[c], 3), b.weight("places", &[4, c], 4));
    // An id past the end takes the last row, one before the first takes that.
    let (ids, index) = ([1, 9, -3, 7, 12, 6], [2, 0]);
    let (ids_i, index_i) = (b.integers("ids", &[2, tokens], &ids), b.integers("index", &[2], &index));
    let s = b.scope();
    let parts = vec![s.get("table", &[7, c]), s.get("added", &[3, c])];
    let x = b.graph.embedding(ids_i, parts, s.get("positions", &[4, c]));
    let gathered = b.graph.gather(x, Some(index_i));
    let y = b.graph.prepend_class_token(x, s.get("token", &[c]), s.get("places", &[4, c]));
    let first = b.graph.gather(y, None);
    let rows = embedded(&table, &positions, &ids, size);
    let all: Vec<f64> = rows
        .chunks(tokens * c)
        .flat_map(|rows| token.iter().chain(rows).zip(&places).map(|(a, b)| a + b).collect::<Vec<_>>())
        .collect();
    b.output(gathered, picked(&rows, &index, size));
    b.output(first, picked(&all, &[0, 0], (c, tokens + 1)));
    b.output(y, all);
    b.finish()
}

fn normalized() -> Case {
    let size @ (c, tokens) = (6, 3);
    let mut b = CaseBuilder::new("tables and a norm");
    let (table, positions) = (b.weight("table", &[10, c], 1), b.weight("positions", &[4, c], 2));
    let (weight, bias) = (b.weight("norm.weight", &[c], 3), b.weight("norm.bias", &[c], 4));
    let (ids, index) = ([1, 9, 3, 0, 2, 5], [2, 0]);
    let (ids_i, index_i) = (b.integers("ids", &[2, tokens], &ids), b.integers("index", &[2], &index));
    let s = b.scope();
    let x = b.graph.embedding(ids_i, vec![s.get("table", &[10, c])], s.get("positions", &[4, c]));
    let x = b.graph.layer_norm(x, &s.pp("norm"), 1e-5);
    let x = b.graph.gather(x, Some(index_i));
    let rows = embedded(&table, &positions, &ids, size);
    let rows = Norm { weight: &weight, bias: &bias, eps: 1e-5 }.layer(&rows);
    b.output(x, picked(&rows, &index, size));
    b.cuda_refuses("6 channels");
    b.finish()
}

/// A table for each image after that image's tokens, which a fully connected layer then reads: they are joined, not the channels.
fn repeated(c: usize) -> Case {
    let (images, own, shared, outputs) = (3, 5, 2, 16);
    let mut b = CaseBuilder::new(format!("a table of {c} channels for each image"));
    let (table, matrix) = (b.weight("table", &[shared, c], 1), b.weight("linear.weight", &[outputs, c], 2));
    let (x_i, x) = b.input("x", &[images, own, c], 3);
    let s = b.scope();
    let rows = b.graph.repeat(s.get("table", &[shared, c]), images);
    let joined = b.graph.concat_tokens(x_i, rows);
    let y = b.graph.linear_no_bias(joined, &s.pp("linear"), outputs);
    b.output(rows, table.repeat(images));
    let all: Vec<f64> = x.chunks(own * c).flat_map(|image| [image, &table[..]].concat()).collect();
    b.output(y, linear(&all, &matrix, None, c, outputs));
    b.finish()
}

// The second has more than one block in every kernel.
operation!([tables(24), tables(1280), normalized(), repeated(24), repeated(1280)]);
