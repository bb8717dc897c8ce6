//! Against the libraries that the published pipeline was built on (`golden.json`, by `scripts/golden/corruptions.py`), closed
//! forms, and the promises of the module's docs.

use std::collections::BTreeMap;

use gauntlet_kernels::Stream;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat};

use super::*;

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Golden {
    steps: BTreeMap<String, Vec<f64>>,
    #[serde(rename = "distances-32")]
    small: BTreeMap<String, Vec<f64>>,
    #[serde(rename = "distances-80")]
    large: BTreeMap<String, Vec<f64>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

/// The script's `hashed`.
fn hashed(k: usize) -> f64 {
    ((12.9898 * (k as f64 + 1.0)).sin() * 43758.5453).abs() % 1.0
}

/// The script's `drawn`: image `n` in planes.
fn drawn(n: usize, side: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for c in 0..3 {
        let k = 100 * n + 10 * c;
        for i in 0..side * side {
            let scale = 32.0 / side as f64;
            let (y, x) = ((i / side) as f64 * scale, (i % side) as f64 * scale);
            let phase = 0.25 * hashed(k) * x + 0.25 * hashed(k + 1) * y + 6.0 * hashed(k + 2);
            let mut value = 0.5 + 0.25 * phase.sin();
            for disk in 0..3 {
                let at = 100 * n + 40 + 10 * disk;
                let away = (x - 32.0 * hashed(at)).powi(2) + (y - 32.0 * hashed(at + 1)).powi(2);
                if away < (3.0 + 7.0 * hashed(at + 2)).powi(2) {
                    value = hashed(at + 3 + c);
                }
            }
            value += 0.1 * (hashed(10_000 + i + side * side * c) - 0.5);
            out.push(((value.clamp(0.0, 1.0) * 255.0 + 0.5).floor() / 255.0) as f32);
        }
    }
    out
}

/// Images like MNIST's: strokes of grey on black.
fn strokes(n: usize) -> Vec<f32> {
    let mut image = vec![0f32; 28 * 28];
    for stroke in 0..3 {
        let at = |k: usize| 5.0 + 18.0 * hashed(1000 * n + 10 * stroke + k) as f32;
        for step in 0..=60 {
            let share = step as f32 / 60.0;
            let (y, x) = (
                at(0) + share * (at(1) - at(0)),
                at(2) + share * (at(3) - at(2)),
            );
            for (i, value) in image.iter_mut().enumerate() {
                let away = ((i / 28) as f32 - y).hypot((i % 28) as f32 - x);
                *value = value.max((2.0 - away).clamp(0.0, 1.0));
            }
        }
    }
    image
}

fn key() -> NoiseKey {
    NoiseKey::new(0, Stream::Corruption)
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Mean L2 distance of images to their corruptions, by severity; `repeats` draws of each image.
fn distances(images: &[Vec<f32>], shape: [usize; 3], family: Corruption, repeats: u32) -> Vec<f64> {
    let rows: Vec<f32> = (0..repeats).flat_map(|_| images.concat()).collect();
    let samples: Vec<u32> = (0..repeats * images.len() as u32).collect();
    let size: usize = shape.iter().product();
    let mean = |severity: Severity| {
        let out = corrupt(&rows, shape, family, severity, key(), &samples);
        let pairs = out.chunks(size).zip(rows.chunks(size));
        pairs.map(|(a, b)| distance(a, b)).sum::<f64>() / samples.len() as f64
    };
    Severity::ALL.map(mean).into()
}

/// The families that draw random numbers.
const RANDOM: [Corruption; 11] = [
    Corruption::GaussianNoise,
    Corruption::ShotNoise,
    Corruption::ImpulseNoise,
    Corruption::GlassBlur,
    Corruption::MotionBlur,
    Corruption::Snow,
    Corruption::Frost,
    Corruption::Fog,
    Corruption::ElasticTransform,
    Corruption::SpeckleNoise,
    Corruption::Spatter,
];

#[test]
fn steps_agree_with_the_libraries_of_the_published_pipeline() {
    let golden = golden().steps;
    let mut compared = 0;
    for side in [32, 80] {
        let image = Raster::new(&drawn(0, side), [3, side, side]);
        let area = side * side;
        // `worst` is in levels of 8 bits, `mean` too.
        let mut check = |name: &str, result: Raster, worst: f64, mean: f64| {
            let wanted = &golden[&format!("{name}-{side}")];
            let every = 61 * (area / 1024);
            let found: Vec<f64> = result
                .values
                .iter()
                .step_by(every)
                .map(|&v| f64::from(v))
                .collect();
            assert_eq!(found.len(), wanted.len(), "{name}-{side}");
            let off: Vec<f64> = found
                .iter()
                .zip(wanted)
                .map(|(a, b)| (a.clamp(0.0, 1.0) - b).abs() * 255.0)
                .collect();
            let most = off.iter().copied().fold(0.0, f64::max);
            let average = off.iter().sum::<f64>() / off.len() as f64;
            assert!(
                most <= worst && average <= mean,
                "{name}-{side}: off by {average}, at most {most}"
            );
            compared += 1;
        };
        let noise = |mean: f64, deviation: f64| -> Vec<f32> {
            let value = |i| mean + deviation * 12f64.sqrt() * (hashed(i) - 0.5);
            (0..area).map(|i| value(i) as f32).collect()
        };
        check("image", image.clone(), 0.02, 0.02);
        for (radius, alias) in [(0.5, 0.6), (1.5, 0.1), (3.0, 0.1), (10.0, 0.5)] {
            let taps = blur::disk(radius, alias);
            let blurred = image
                .map_planes(|plane| raster::correlate(plane, side, &taps, raster::Border::Mirror));
            // The published disk of radius 10 is mirrored where it touches its frame.
            let (worst, mean) = if radius == 10.0 {
                (0.7, 0.3)
            } else {
                (0.1, 0.05)
            };
            check(&format!("defocus {radius}"), blurred, worst, mean);
        }
        for (sigma, reach, rounds) in [(0.4, 1, 2), (1.1, 3, 2)] {
            let mut i = 0;
            let mut offset = || {
                i += 1;
                (hashed(i - 1) * (2 * reach) as f64) as isize - reach as isize
            };
            let out = blur::glass_of(&image, sigma, reach, rounds, &mut offset);
            check(&format!("glass {sigma}"), out, 1.1, 0.1);
        }
        for (radius, sigma, angle) in [(8.0, 2.0, 37.0), (20.0, 15.0, -41.0)] {
            let taps = raster::motion(radius, sigma, angle);
            let out = image
                .map_planes(|plane| raster::correlate(plane, side, &taps, raster::Border::Nearest));
            check(&format!("motion {radius}"), out, 0.6, 0.3);
        }
        for (name, severity) in [("zoom 1.06", 1), ("zoom 1.26", 5)] {
            check(name, blur::zoom(&image, level(severity)), 0.1, 0.05);
        }
        let field = noise(0.15, 0.3);
        check(
            "snow 2",
            weather::snow_of(
                &image,
                level(3).of(weather::SNOW_CIFAR, weather::SNOW_IMAGENET),
                &field,
                -100.0,
            ),
            1.1,
            0.3,
        );
        let mut i = 0;
        let mut uniform = || {
            i += 1;
            (2.0 * hashed(i - 1) - 1.0) as f32
        };
        let full = side.next_power_of_two();
        let clouds = weather::plasma(full, 2.5, &mut uniform);
        check(
            "fog",
            weather::fog_of(&image, 0.75, &clouds, full),
            0.1,
            0.05,
        );
        check(
            "brightness 2",
            weather::brightness(&image, level(4)),
            0.05,
            0.03,
        );
        check("saturate 2", extra::saturate(&image, level(1)), 0.05, 0.03);
        check("saturate 4", extra::saturate(&image, level(4)), 0.05, 0.03);
        check("contrast", digital::contrast(&image, level(4)), 0.05, 0.03);
        let moves = std::array::from_fn(|i| {
            std::array::from_fn(|j| (4.0 * (hashed(2 * i + j) - 0.5)) as f32)
        });
        let [right, down] = [500, 90_000].map(|start| {
            let noise: Vec<f32> = (start..start + area)
                .map(|i| (2.0 * hashed(i) - 1.0) as f32)
                .collect();
            digital::smooth(&noise, side, 1.92, 2.56)
        });
        // OpenCV rounds coordinates to a 32nd of a pixel.
        check(
            "elastic",
            digital::elastic_of(&image, moves, &right, &down),
            4.0,
            0.5,
        );
        for (share, level) in [
            (0.85, level(3)),
            (0.65, level(5)),
            (
                0.25,
                Level {
                    small: false,
                    ..level(5)
                },
            ),
        ] {
            // Pillow rounds to bytes four times.
            check(
                &format!("pixelate {share}"),
                digital::pixelate(&image, level),
                1.6,
                0.6,
            );
        }
        for quality in [80, 40, 10] {
            // libjpeg's transform is in whole numbers: a coefficient between two multiples may go either way.
            check(
                &format!("jpeg {quality}"),
                jpeg::compressed(&image, quality),
                10.0,
                0.9,
            );
        }
        check(
            "gaussian-blur",
            extra::gaussian_blur(&image, level(5)),
            0.05,
            0.03,
        );
        check(
            "water",
            spatter::spatter_of(&image, spatter::CIFAR[2], &noise(0.65, 0.3)),
            3.0,
            0.2,
        );
        check(
            "mud",
            spatter::spatter_of(&image, spatter::CIFAR[4], &noise(0.65, 0.1)),
            0.1,
            0.05,
        );
    }
    assert_eq!(compared, golden.len());
}

fn level(severity: usize) -> Level {
    Level {
        severity: Severity::ALL[severity - 1],
        small: true,
    }
}

#[test]
fn distances_agree_with_the_published_pipeline() {
    let golden = golden();
    for (side, wanted, repeats, tolerance) in
        [(32, golden.small, 20, 0.06), (80, golden.large, 2, 0.15)]
    {
        assert_eq!(wanted.len(), Corruption::ALL.len() - 1, "all but frost");
        let images: Vec<_> = (0..8).map(|n| drawn(n, side)).collect();
        for (name, wanted) in wanted {
            let family = name.parse().unwrap();
            let found = distances(&images, [3, side, side], family, repeats);
            // Without random numbers, what is left is rounding to bytes.
            let tolerance = if RANDOM.contains(&family) {
                tolerance
            } else {
                0.01
            };
            for (found, wanted) in found.iter().zip(&wanted) {
                let off = (found / wanted - 1.0).abs();
                assert!(off < tolerance, "{name} at {side}: {found}, not {wanted}");
            }
        }
    }
}

/// Where the published constants do not make the distance grow from a severity to the next.
fn falls(family: Corruption, from: usize) -> bool {
    match family {
        // A stronger blur takes back some of what copied pixels did.
        Corruption::GlassBlur => from != 3,
        // Lengths 6 and 8 of one deviation, which reaches neither.
        Corruption::MotionBlur => from == 3,
        // 0.9 x + 0.4 ice, then 0.85 x + 0.4 ice: ice lightens, the image's share darkens.
        Corruption::Frost => from >= 3,
        // The affine map, which is weaker at each severity, moves more pixels than the displacement.
        Corruption::ElasticTransform => true,
        // From water to mud.
        Corruption::Spatter => from == 3,
        // From less saturation to more.
        Corruption::Saturate => from == 2,
        _ => false,
    }
}

#[test]
fn distance_grows_with_severity_wherever_the_published_constants_make_it_grow() {
    let photos: Vec<_> = (0..8).map(|n| drawn(n, 32)).collect();
    let digits: Vec<_> = (0..8).map(strokes).collect();
    for family in Corruption::ALL {
        for (images, shape) in [(&photos, [3, 32, 32]), (&digits, [1, 28, 28])] {
            if !family.applies_to(shape[0]) {
                continue;
            }
            let far = distances(images, shape, family, 20);
            assert!(far[0] > 0.1, "{family} does something: {far:?}");
            for from in (1..5).filter(|&from| !falls(family, from)) {
                assert!(far[from] > far[from - 1], "{family}, {shape:?}: {far:?}");
            }
        }
    }
}

#[test]
fn a_corrupted_image_is_a_function_of_seed_family_severity_and_sample() {
    let images = [drawn(0, 32), drawn(1, 32), drawn(2, 32)];
    let shape = [3, 32, 32];
    for family in Corruption::ALL {
        let run = |images: &[Vec<f32>], key: NoiseKey, samples: &[u32]| {
            corrupt(
                &images.concat(),
                shape,
                family,
                Severity::ALL[4],
                key,
                samples,
            )
        };
        let together = run(&images, key(), &[7, 8, 900_000]);
        for (i, sample) in [7, 8, 900_000].into_iter().enumerate() {
            let alone = run(&images[i..=i], key(), &[sample]);
            assert_eq!(alone, together[i * 3072..][..3072], "{family}");
        }
        let turned = run(&[images[1].clone(), images[0].clone()], key(), &[8, 7]);
        assert_eq!(turned[..3072], together[3072..6144], "{family}");
        let again = |key, sample| run(&images[..1], key, &[sample]) != together[..3072];
        let changes = [
            again(NoiseKey::new(1, Stream::Corruption), 7),
            again(key(), 9),
            again(key().at(1, 0), 7),
        ];
        assert_eq!(changes, [RANDOM.contains(&family); 3], "{family}");
    }
    // Families and severities draw apart: the sum of the noise of one is not that of the other.
    let noise = |family, severity: usize| -> Vec<f32> {
        let out = corrupt(
            &[0.5; 64],
            [1, 8, 8],
            family,
            Severity::ALL[severity],
            key(),
            &[0],
        );
        out.iter().map(|v| (v - 0.5).signum()).collect()
    };
    assert_ne!(
        noise(Corruption::GaussianNoise, 0),
        noise(Corruption::GaussianNoise, 1)
    );
    assert_ne!(
        noise(Corruption::GaussianNoise, 0),
        noise(Corruption::SpeckleNoise, 0)
    );
}

#[test]
fn any_shape_works_and_values_stay_in_range() {
    let shapes = [
        [1, 1, 1],
        [1, 2, 3],
        [1, 8, 8],
        [3, 8, 8],
        [3, 5, 13],
        [2, 28, 28],
        [4, 7, 6],
        [1, 70, 9],
        [3, 65, 66],
    ];
    for family in Corruption::ALL {
        for severity in Severity::ALL {
            for shape in shapes {
                let size: usize = shape.iter().product();
                for fill in [0.0, 1.0, 0.5] {
                    let grain = |i: usize| if fill == 0.5 { hashed(i) as f32 } else { fill };
                    let image: Vec<f32> = (0..size).map(grain).collect();
                    let out = corrupt(&image, shape, family, severity, key(), &[3]);
                    assert!(
                        out.len() == size && out.iter().all(|v| (0.0..=1.0).contains(v)),
                        "{family} {severity} {shape:?} {fill}"
                    );
                }
            }
            assert!(corrupt(&[], [3, 32, 32], family, severity, key(), &[]).is_empty());
        }
    }
}

#[test]
fn grey_images_are_treated_as_colour_images_of_equal_channels() {
    let grey: Vec<f32> = (0..28 * 28).map(|i| hashed(i) as f32).collect();
    let colour = [grey.clone(), grey.clone(), grey.clone()].concat();
    let deterministic = [
        Corruption::DefocusBlur,
        Corruption::ZoomBlur,
        Corruption::Brightness,
        Corruption::Contrast,
        Corruption::Pixelate,
        Corruption::GaussianBlur,
        Corruption::JpegCompression,
    ];
    // Random once for all channels, and without a colour of their own.
    let shared = [
        Corruption::GlassBlur,
        Corruption::MotionBlur,
        Corruption::Snow,
        Corruption::Fog,
        Corruption::ElasticTransform,
    ];
    for family in deterministic.into_iter().chain(shared) {
        let severity = Severity::ALL[2];
        let one = corrupt(&grey, [1, 28, 28], family, severity, key(), &[5]);
        let three = corrupt(&colour, [3, 28, 28], family, severity, key(), &[5]);
        for plane in three.chunks(28 * 28) {
            let off = one
                .iter()
                .zip(plane)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(off < 1e-4, "{family}: {off}");
        }
    }
    let same = corrupt(
        &grey,
        [1, 28, 28],
        Corruption::Saturate,
        Severity::ALL[4],
        key(),
        &[5],
    );
    assert_eq!(same, grey);
}

#[test]
fn noise_has_the_published_moments() {
    let grey = vec![0.5f32; 200 * 784];
    let samples: Vec<u32> = (0..200).collect();
    let moments = |family: Corruption, severity: Severity| {
        let out = corrupt(&grey, [1, 28, 28], family, severity, key(), &samples);
        let n = out.len() as f64;
        let mean = out.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let square = out
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>()
            / n;
        let stuck = out.iter().filter(|v| **v == 0.0 || **v == 1.0).count() as f64 / n;
        (mean, square.sqrt(), stuck)
    };
    let gaussian = [0.04, 0.06, 0.08, 0.09, 0.10];
    let photons = [500.0f64, 250.0, 100.0, 75.0, 50.0];
    let impulse = [0.01, 0.02, 0.03, 0.05, 0.07];
    let speckle = [0.06, 0.1, 0.12, 0.16, 0.2];
    for (i, severity) in Severity::ALL.into_iter().enumerate() {
        for (family, deviation) in [
            (Corruption::GaussianNoise, gaussian[i]),
            (Corruption::ShotNoise, (0.5 / photons[i]).sqrt()),
            (Corruption::SpeckleNoise, 0.5 * speckle[i]),
        ] {
            let (mean, found, _) = moments(family, severity);
            assert!(
                (mean - 0.5).abs() < 2e-3,
                "{family} {severity}: mean {mean}"
            );
            assert!(
                (found / deviation - 1.0).abs() < 0.01,
                "{family} {severity}: {found}"
            );
        }
        let (mean, _, stuck) = moments(Corruption::ImpulseNoise, severity);
        assert!(
            (mean - 0.5).abs() < 2e-3 && (stuck / impulse[i] - 1.0).abs() < 0.1,
            "{stuck}"
        );
    }
    // Larger images take larger constants.
    let large = vec![0.5f32; 3 * 100 * 100];
    let out = corrupt(
        &large,
        [3, 100, 100],
        Corruption::GaussianNoise,
        Severity::ALL[0],
        key(),
        &[0],
    );
    let variance = out.iter().map(|v| (v - 0.5).powi(2)).sum::<f32>() / out.len() as f32;
    assert!((variance.sqrt() / 0.08 - 1.0).abs() < 0.02);
}

#[test]
fn light_and_contrast_follow_their_formulas() {
    let run = |image: &[f32], shape, family, severity: usize| {
        corrupt(
            image,
            shape,
            family,
            Severity::ALL[severity - 1],
            key(),
            &[0],
        )
    };
    let near = |found: Vec<f32>, wanted: &[f32]| {
        let off = found
            .iter()
            .zip(wanted)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(
            found.len() == wanted.len() && off < 1e-6,
            "{found:?}, not {wanted:?}"
        );
    };
    near(
        run(&[0.0, 0.2, 0.95], [1, 1, 3], Corruption::Brightness, 3),
        &[0.15, 0.35, 1.0],
    );
    // Value 0.4 becomes 0.7 (a factor of 1.75), 0.8 becomes 1 (1.25); black becomes grey.
    let colours = [0.4, 0.8, 0.0, 0.2, 0.4, 0.0, 0.0, 0.0, 0.0];
    near(
        run(&colours, [3, 1, 3], Corruption::Brightness, 5),
        &[0.7, 1.0, 0.3, 0.35, 0.5, 0.3, 0.0, 0.0, 0.3],
    );
    near(
        run(&[0.0, 0.4, 0.8], [1, 1, 3], Corruption::Contrast, 2),
        &[0.2, 0.4, 0.6],
    );
    // Saturation 0.5 times 0.3 is 0.15 of value 0.8; grey stays grey without a constant, and gets red's hue with one.
    let colours = [0.8, 0.5, 0.6, 0.5, 0.4, 0.5];
    near(
        run(&colours, [3, 1, 2], Corruption::Saturate, 1),
        &[0.8, 0.5, 0.74, 0.5, 0.68, 0.5],
    );
    near(
        run(&colours[..], [3, 1, 2], Corruption::Saturate, 5),
        &[0.8, 0.5, 0.4, 0.4, 0.0, 0.4],
    );
    // Black has no brightest value to fog up to.
    near(run(&[0.0; 64], [1, 8, 8], Corruption::Fog, 5), &[0.0; 64]);
    let foggy = run(&[0.6; 1024], [1, 32, 32], Corruption::Fog, 4);
    let ends = foggy
        .iter()
        .fold((1f32, 0f32), |(low, high), &v| (low.min(v), high.max(v)));
    near(vec![ends.0, ends.1], &[0.6 * 0.6 / 1.6, 0.6]);
}

#[test]
fn blurs_and_codecs_keep_a_constant_image() {
    for family in [
        Corruption::DefocusBlur,
        Corruption::GlassBlur,
        Corruption::MotionBlur,
        Corruption::ZoomBlur,
        Corruption::GaussianBlur,
        Corruption::ElasticTransform,
        Corruption::Pixelate,
        Corruption::JpegCompression,
        Corruption::Contrast,
    ] {
        for severity in Severity::ALL {
            for shape in [[1, 8, 8], [3, 32, 32], [3, 70, 80]] {
                let size: usize = shape.iter().product();
                let image = vec![102.0 / 255.0; size];
                let out = corrupt(&image, shape, family, severity, key(), &[1]);
                let off = out.iter().map(|v| (v - image[0]).abs()).fold(0.0, f32::max);
                // Coding and truncating to bytes may move a level, coarse tables of JPEG more.
                let allowed = match family {
                    Corruption::JpegCompression => 0.03,
                    Corruption::GlassBlur => 1.01 / 255.0,
                    _ => 1e-5,
                };
                assert!(off < allowed, "{family} {severity} {shape:?}: {off}");
            }
        }
    }
}

#[test]
fn pixelating_blocks_of_the_right_size_changes_nothing() {
    // 80 pixels: half of them at severity 2, a quarter at severity 5.
    for (severity, block) in [(2, 2), (5, 4)] {
        let image: Vec<f32> = (0..80 * 80)
            .map(|i| hashed(i / 80 / block * 80 + i % 80 / block) as f32)
            .collect();
        let run = |severity: usize| {
            corrupt(
                &image,
                [1, 80, 80],
                Corruption::Pixelate,
                Severity::ALL[severity - 1],
                key(),
                &[0],
            )
        };
        assert!(distance(&run(severity), &image) < 1e-4);
        assert!(distance(&run(1), &image) > 1.0);
    }
}

#[test]
fn grey_jpeg_is_what_the_codec_of_the_image_crate_gives() {
    for (height, width) in [(28, 28), (33, 21)] {
        let image: Vec<f32> = drawn(3, 40)[..height * width].to_vec();
        for quality in [80, 50, 25, 7] {
            let bytes: Vec<u8> = image.iter().map(|v| (v * 255.0).round() as u8).collect();
            let mut file = Vec::new();
            JpegEncoder::new_with_quality(&mut file, quality)
                .encode(&bytes, width as u32, height as u32, ExtendedColorType::L8)
                .unwrap();
            let coded = image::load_from_memory_with_format(&file, ImageFormat::Jpeg).unwrap();
            let ours = jpeg::compressed(&Raster::new(&image, [1, height, width]), quality.into());
            let off: Vec<f32> = coded
                .into_luma8()
                .iter()
                .zip(&ours.values)
                .map(|(&theirs, ours)| (f32::from(theirs) - ours * 255.0).abs())
                .collect();
            let mean = off.iter().sum::<f32>() / off.len() as f32;
            let change: Vec<f32> = image
                .iter()
                .zip(&ours.values)
                .map(|(a, b)| (a - b).abs() * 255.0)
                .collect();
            let change = change.iter().sum::<f32>() / off.len() as f32;
            // Its transform is in whole numbers, so that a coefficient may be rounded the other way.
            assert!(
                change > 5.0 && mean < 0.2 * change,
                "quality {quality}: {mean} of {change}"
            );
        }
    }
}

#[test]
fn frost_is_the_published_blend_with_ice_of_the_photographs_tone() {
    // On black, severity 1 of small images leaves 0.2 ice.
    let samples: Vec<u32> = (0..400).collect();
    let black = vec![0.0; 400 * 3072];
    let out = corrupt(
        &black,
        [3, 32, 32],
        Corruption::Frost,
        Severity::ALL[0],
        key(),
        &samples,
    );
    let mean = |channel: usize| {
        let planes = out.chunks(1024).skip(channel).step_by(3);
        planes.flatten().map(|v| v / 0.2).sum::<f32>() / (400.0 * 1024.0)
    };
    // Means of the photographs: 0.57, 0.65, 0.70.
    for (channel, wanted) in [0.57, 0.65, 0.70].into_iter().enumerate() {
        assert!((mean(channel) - wanted).abs() < 0.03, "{}", mean(channel));
    }
    for image in out.chunks(3072) {
        let green = &image[1024..2048];
        let mean = green.iter().sum::<f32>() / 1024.0;
        let spread = (green.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 1024.0).sqrt() / 0.2;
        assert!((0.03..0.14).contains(&spread), "{spread}");
    }
    // The weights: white is cut off above 1 in all but the darkest; of grey, what is left is `keep`.
    let at = |value: f32| {
        corrupt(
            &[value; 3072],
            [3, 32, 32],
            Corruption::Frost,
            Severity::ALL[4],
            key(),
            &[0],
        )
    };
    let (dark, light) = (at(0.0), at(0.4));
    for (dark, light) in dark.iter().zip(light) {
        assert!((light - dark - 0.75 * 0.4).abs() < 1e-5);
    }
}

#[test]
fn names_parse_back_and_are_those_of_json() {
    for (i, family) in Corruption::ALL.into_iter().enumerate() {
        assert_eq!(family as usize, i);
        assert_eq!(family.name().parse(), Ok(family));
        assert_eq!(serde_json::to_value(family).unwrap(), family.name());
    }
    let error = "frosty".parse::<Corruption>().unwrap_err();
    assert!(error.contains("frost, "), "{error}");
    for severity in Severity::ALL {
        assert_eq!(severity.to_string().parse(), Ok(severity));
        assert_eq!(serde_json::to_value(severity).unwrap(), severity.number());
    }
    assert!("6".parse::<Severity>().is_err() && serde_json::from_str::<Severity>("0").is_err());
}
