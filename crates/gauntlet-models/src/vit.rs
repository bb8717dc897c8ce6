use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{LayerNorm, LayerNormConfig, Linear};
use burn::tensor::{Tensor, activation};
use gauntlet_formats::onnx::Attribute;

use crate::ModelError;
use crate::build::Builder;
use crate::conv::convolve;
use crate::onnx::{Draft, Value};

/// What is added to the variance before the root.
const EPSILON: f64 = 1e-6;

/// Vision transformer (Dosovitskiy et al. 2021) with layers named as in timm: a convolution cuts patches, a class token and learned positions join, blocks
/// of attention and perceptron follow, each after a LayerNorm; the class token is judged. Heads have 64 channels, the perceptron four times the width.
#[derive(Module, Debug)]
pub(crate) struct Vit {
    cls_token: Param<Tensor<3>>,
    pos_embed: Param<Tensor<3>>,
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

#[derive(Module, Debug)]
pub(crate) struct PatchEmbed {
    proj: Conv2d,
}

#[derive(Module, Debug)]
pub(crate) struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
pub(crate) struct Attention {
    qkv: Linear,
    proj: Linear,
}

#[derive(Module, Debug)]
pub(crate) struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

/// Channels of a head.
const HEAD: usize = 64;

impl Vit {
    /// `width` channels in `depth` blocks; patches of 4×4 pixels on images of up to 64×64, of 16×16 on larger ones.
    pub(crate) fn new(
        build: &mut Builder<'_>,
        shape: [usize; 3],
        classes: usize,
        depth: usize,
        width: usize,
    ) -> Result<Self, ModelError> {
        let [channels, height, columns] = shape;
        let wrong = |key, problem| Err(ModelError::Config { key, problem });
        if !width.is_multiple_of(HEAD) {
            return wrong(
                "width",
                format!("{width} is no multiple of {HEAD}, the channels of a head"),
            );
        }
        if depth == 0 {
            return wrong("depth", "must be at least 1".to_owned());
        }
        let patch = if height.max(columns) > 64 { 16 } else { 4 };
        if height < patch || columns < patch || height % patch != 0 || columns % patch != 0 {
            let problem = format!(
                "`vit` cuts patches of {patch}x{patch}, which images of {height}x{columns} are not made of"
            );
            return wrong("arch", problem);
        }
        let patches = (height / patch) * (columns / patch);
        let proj = build.conv([channels, width], patch, patch, 0);
        let cls_token = build.normal([1, 1, width], 0.02);
        let pos_embed = build.normal([1, patches + 1, width], 0.02);
        Ok(Self {
            cls_token,
            pos_embed,
            patch_embed: PatchEmbed { proj },
            blocks: (0..depth).map(|_| Block::new(build, width)).collect(),
            norm: norm(build, width),
            head: build.linear(width, classes),
        })
    }

    pub(crate) fn features(&self, x: Tensor<4>) -> Tensor<2> {
        let x = convolve(&self.patch_embed.proj, x);
        let x: Tensor<3> = x.flatten::<3>(2, 3).swap_dims(1, 2);
        let token = self.cls_token.val().repeat_dim(0, x.dims()[0]);
        let mut x = Tensor::cat(vec![token, x], 1) + self.pos_embed.val();
        for block in &self.blocks {
            x = block.forward(x);
        }
        // The norm is of each token: only that of the class token is needed.
        self.norm.forward(x.narrow(1, 0, 1)).squeeze_dim(1)
    }

    pub(crate) fn head(&self, features: Tensor<2>) -> Tensor<2> {
        self.head.forward(features)
    }

    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value) -> Value {
        let [_, tokens, width] = self.pos_embed.dims();
        let x = draft.conv("patch_embed.proj", &self.patch_embed.proj, x);
        let shape = draft.ints(&[0, width as i64, tokens as i64 - 1]);
        let x = draft.op("Reshape", &[&x.0, &shape], &[]);
        let x = draft.op(
            "Transpose",
            &[&x.0],
            &[("perm", Attribute::Ints(vec![0, 2, 1]))],
        );
        // A row of zeros for the class token, which is added with the positions.
        let pads = draft.ints(&[0, 1, 0, 0, 0, 0]);
        let x = draft.op("Pad", &[&x.0, &pads], &[]);
        let position = draft.parameter("pos_embed", self.pos_embed.val());
        let x = draft.op("Add", &[&x.0, &position], &[]);
        let rest = Tensor::zeros([1, tokens - 1, width], &self.cls_token.device());
        let token = Tensor::cat(vec![self.cls_token.val(), rest], 1);
        let token = draft.parameter("cls_token", token);
        let mut x = draft.op("Add", &[&x.0, &token], &[]);
        for (place, block) in self.blocks.iter().enumerate() {
            x = block.draw(draft, &format!("blocks.{place}"), &x, tokens, width);
        }
        let x = draft.layer_norm("norm", &self.norm, EPSILON, &x);
        let first = draft.ints(&[0]);
        let x = draft.op("Gather", &[&x.0, &first], &[("axis", Attribute::Int(1))]);
        let x = draft.flatten(&x);
        draft.linear("head", &self.head, &x)
    }
}

fn norm(build: &Builder<'_>, width: usize) -> LayerNorm {
    LayerNormConfig::new(width)
        .with_epsilon(EPSILON)
        .init(build.device())
}

impl Block {
    fn new(build: &mut Builder<'_>, width: usize) -> Self {
        Self {
            norm1: norm(build, width),
            attn: Attention {
                qkv: build.linear(width, 3 * width),
                proj: build.linear(width, width),
            },
            norm2: norm(build, width),
            mlp: Mlp {
                fc1: build.linear(width, 4 * width),
                fc2: build.linear(4 * width, width),
            },
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clone() + self.attn.forward(self.norm1.forward(x));
        let y = self.mlp.fc1.forward(self.norm2.forward(x.clone()));
        x + self.mlp.fc2.forward(activation::gelu(y))
    }

    fn draw(&self, draft: &mut Draft, at: &str, x: &Value, tokens: usize, width: usize) -> Value {
        let y = draft.layer_norm(&format!("{at}.norm1"), &self.norm1, EPSILON, x);
        let y = self
            .attn
            .draw(draft, &format!("{at}.attn"), &y, tokens, width);
        let x = draft.add(x, &y);
        let y = draft.layer_norm(&format!("{at}.norm2"), &self.norm2, EPSILON, &x);
        let y = draft.dense(&format!("{at}.mlp.fc1"), &self.mlp.fc1, &y);
        let y = draft.gelu(&y);
        let y = draft.dense(&format!("{at}.mlp.fc2"), &self.mlp.fc2, &y);
        draft.add(&x, &y)
    }
}

impl Attention {
    /// softmax(Q Kᵀ / √d) V of each head, put together again.
    ///
    /// # Shapes
    /// `[batch, tokens, width]` both.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let heads = width / HEAD;
        let all = self.qkv.forward(x).reshape([batch, tokens, 3, heads, HEAD]);
        let all = all.permute([2, 0, 3, 1, 4]);
        let part = |which: usize| -> Tensor<4> { all.clone().narrow(0, which, 1).squeeze_dim(0) };
        let (q, k, v) = (part(0), part(1), part(2));
        let scores = q
            .mul_scalar(1.0 / (HEAD as f32).sqrt())
            .matmul(k.swap_dims(2, 3));
        let mixed = activation::softmax(scores, 3).matmul(v);
        self.proj
            .forward(mixed.swap_dims(1, 2).reshape([batch, tokens, width]))
    }

    fn draw(&self, draft: &mut Draft, at: &str, x: &Value, tokens: usize, width: usize) -> Value {
        let (tokens, heads) = (tokens as i64, (width / HEAD) as i64);
        let perm = |order: &[i64]| [("perm", Attribute::Ints(order.to_vec()))];
        let all = draft.dense(&format!("{at}.qkv"), &self.qkv, x);
        let shape = draft.ints(&[0, tokens, 3, heads, HEAD as i64]);
        let all = draft.op("Reshape", &[&all.0, &shape], &[]);
        let all = draft.op("Transpose", &[&all.0], &perm(&[2, 0, 3, 1, 4]));
        let axis = draft.ints(&[0]);
        let mut part = |which: i64| {
            let which = draft.ints(&[which]);
            let part = draft.op("Gather", &[&all.0, &which], &[("axis", Attribute::Int(0))]);
            draft.op("Squeeze", &[&part.0, &axis], &[])
        };
        let (q, k, v) = (part(0), part(1), part(2));
        let scale = draft.number(1.0 / (HEAD as f32).sqrt());
        let q = draft.op("Mul", &[&q.0, &scale], &[]);
        let k = draft.op("Transpose", &[&k.0], &perm(&[0, 1, 3, 2]));
        let scores = draft.op("MatMul", &[&q.0, &k.0], &[]);
        let shares = draft.op("Softmax", &[&scores.0], &[("axis", Attribute::Int(-1))]);
        let mixed = draft.op("MatMul", &[&shares.0, &v.0], &[]);
        let mixed = draft.op("Transpose", &[&mixed.0], &perm(&[0, 2, 1, 3]));
        let shape = draft.ints(&[0, tokens, width as i64]);
        let mixed = draft.op("Reshape", &[&mixed.0, &shape], &[]);
        draft.dense(&format!("{at}.proj"), &self.proj, &mixed)
    }
}
