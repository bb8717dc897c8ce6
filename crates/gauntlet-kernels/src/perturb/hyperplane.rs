use burn::tensor::Tensor;

/// The shortest way in a box from `x` to where `gap + <normal, move>` is zero, or as near to zero as the box reaches: all values set out
/// at once, at speed 1 (the shortest way in L∞) or, if `along_normal`, at speed `|normal|` (in L2), and each stops at its face. The
/// time at which the gap is closed comes from `steps` steps of Newton's method (Croce & Hein 2020, equation 4, sorts for it).
///
/// # Shapes
/// `x` and `normal: [batch, values]`, `gap: [batch]`; the result is `[batch, values]`. `None` where there is no kernel for it: on the
/// host, where it is better done row by row, and without the feature `cube`.
#[cfg_attr(not(feature = "cube"), expect(unused_variables))]
pub fn move_to_hyperplane(
    x: &Tensor<2>,
    normal: &Tensor<2>,
    gap: &Tensor<1>,
    bounds: (f32, f32),
    along_normal: bool,
    steps: u32,
) -> Option<Tensor<2>> {
    #[cfg(feature = "cube")]
    if crate::cube::takes(&[x, normal]) && crate::cube::takes(&[gap]) {
        let (x, normal, gap) = (x.clone(), normal.clone(), gap.clone());
        let moves = crate::cube::move_to_hyperplane(x, normal, gap, bounds, along_normal, steps);
        return Some(moves);
    }
    None
}
