//! Exported networks compute in tract what they compute here.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Cursor;

    use burn::tensor::{Device, Tensor, TensorData};
    use gauntlet_models::{Classifier, Description, export};
    use tract_onnx::prelude::{Framework, InferenceModelExt, IntoRunnable, tvec};

    /// Logits of batches of 1, 7 and 128 by both, relative to the largest.
    fn compare(model: &str, shape: [usize; 3]) {
        let description = Description {
            config: serde_json::from_str(model).unwrap(),
            shape,
            classes: (0..10).map(|class| class.to_string()).collect(),
        };
        let network = description.init(3, &Device::flex()).unwrap();
        let bytes = export::onnx(&network, &description, BTreeMap::new()).to_bytes();
        let plan = tract_onnx::onnx()
            .model_for_read(&mut Cursor::new(bytes))
            .unwrap()
            .into_optimized()
            .unwrap()
            .into_runnable()
            .unwrap();
        let [channels, height, width] = shape;
        for count in [1, 7, 128] {
            let value = |i: usize| (0.5 + 0.5 * (0.37 * i as f64).sin()) as f32;
            let values: Vec<f32> = (0..count * channels * height * width).map(value).collect();
            let theirs =
                tract_onnx::prelude::Tensor::from_shape(&[count, channels, height, width], &values)
                    .unwrap();
            let theirs = plan.run(tvec!(theirs.into())).unwrap();
            let theirs = theirs[0].try_as_plain_ram().unwrap();
            let theirs = theirs.as_slice::<f32>().unwrap();
            let data = TensorData::new(values, [count, channels, height, width]);
            let ours = network.logits(Tensor::from_data(data, &Device::flex()));
            let ours: Vec<f32> = ours.try_into_vec_as().unwrap();
            assert_eq!(ours.len(), theirs.len());
            let most = ours
                .iter()
                .fold(0.0, |most: f32, value| most.max(value.abs()));
            for (ours, theirs) in ours.iter().zip(theirs) {
                let off = (ours - theirs).abs();
                assert!(
                    off <= 1e-4 * most,
                    "{model}, {count} images: {ours} here, {theirs} in tract"
                );
            }
        }
    }

    #[test]
    fn small_networks() {
        compare(r#"{"arch":"mlp"}"#, [1, 8, 8]);
        compare(
            r#"{"arch":"mnist-cnn","mean":[0.3],"std":[0.4]}"#,
            [1, 12, 12],
        );
        compare(r#"{"arch":"small-cnn"}"#, [1, 16, 16]);
        compare(r#"{"arch":"lenet-madry"}"#, [1, 8, 8]);
    }

    #[test]
    fn residual_networks() {
        compare(
            r#"{"arch":"wide-resnet","depth":10,"width":1}"#,
            [3, 16, 16],
        );
        let same = r#"{"arch":"wide-resnet-same","depth":10,"width":1,"activation":"silu"}"#;
        compare(same, [3, 16, 16]);
        compare(r#"{"arch":"preact-resnet18"}"#, [3, 8, 8]);
        compare(r#"{"arch":"preact-resnet18-plain"}"#, [3, 8, 8]);
        compare(r#"{"arch":"resnet18"}"#, [3, 32, 32]);
        compare(r#"{"arch":"resnet50"}"#, [3, 32, 32]);
        compare(r#"{"arch":"resnet18-cifar"}"#, [3, 8, 8]);
    }

    #[test]
    fn vgg_and_transformer() {
        compare(r#"{"arch":"vgg16-bn"}"#, [3, 32, 32]);
        compare(r#"{"arch":"vit","depth":2,"width":64}"#, [3, 16, 16]);
    }
}
