//! The known data sets: files, hashes, licences, citations.

use std::fmt;
use std::str::FromStr;

use crate::Source;

/// One file of a data set, as it lies in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Its name.
    pub name: &'static str,
    /// SHA-256 of its (uncompressed) content.
    pub sha256: &'static str,
}

/// Where the files of a data set come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In this program.
    Embedded,
    /// One gzipped file each, at any of these addresses.
    Files(&'static [&'static str]),
    /// In one `.tar.gz` of this name, at any of these addresses.
    Archive(&'static str, &'static [&'static str]),
    /// The user's own.
    Folder,
}

/// What is known of a data set.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// In one line.
    pub summary: &'static str,
    /// Channels, height, width, where that is fixed.
    pub shape: Option<[usize; 3]>,
    /// Examples to train on and to test on, where that is fixed.
    pub examples: Option<[usize; 2]>,
    /// Its files.
    pub files: &'static [DataFile],
    /// Where they come from.
    pub origin: Origin,
    /// Folder of an installed system package that holds them.
    pub installed: Option<&'static str>,
    /// The licence, as its publisher states it.
    pub licence: &'static str,
    /// The work to cite.
    pub citation: &'static str,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Digits,
        Self::Mnist,
        Self::FashionMnist,
        Self::Cifar10,
        Self::Cifar100,
        Self::ImageFolder,
    ];

    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::ImageFolder => "image-folder",
        }
    }

    /// What is known of it.
    pub fn info(self) -> &'static Info {
        match self {
            Self::Digits => &DIGITS,
            Self::Mnist => &MNIST,
            Self::FashionMnist => &FASHION_MNIST,
            Self::Cifar10 => &CIFAR10,
            Self::Cifar100 => &CIFAR100,
            Self::ImageFolder => &IMAGE_FOLDER,
        }
    }

    /// Names of its classes, in the order of their numbers; empty for `image-folder`.
    pub fn classes(self) -> Vec<String> {
        let names = match self {
            Self::Digits | Self::Mnist => "0 1 2 3 4 5 6 7 8 9",
            Self::FashionMnist => {
                "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot"
            }
            Self::Cifar10 => "airplane automobile bird cat deer dog frog horse ship truck",
            Self::Cifar100 => CIFAR100_CLASSES,
            Self::ImageFolder => "",
        };
        names.split_whitespace().map(str::to_owned).collect()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|source| source.name() == text);
        found.ok_or_else(|| format!("`{text}` is no data set; there are {}", names()))
    }
}

const fn file(name: &'static str, sha256: &'static str) -> DataFile {
    DataFile { name, sha256 }
}

static DIGITS: Info = Info {
    summary: "UCI handwritten digits, 8x8 grey, in this program",
    shape: Some([1, 8, 8]),
    examples: Some([1_347, 450]),
    files: &[],
    origin: Origin::Embedded,
    installed: None,
    licence: "CC BY 4.0",
    citation: "Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI, doi:10.24432/C50P49",
};

static MNIST: Info = Info {
    summary: "handwritten digits, 28x28 grey",
    shape: Some([1, 28, 28]),
    examples: Some([60_000, 10_000]),
    files: &[
        file(
            "train-images-idx3-ubyte",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        file(
            "train-labels-idx1-ubyte",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        file(
            "t10k-images-idx3-ubyte",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        file(
            "t10k-labels-idx1-ubyte",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ],
    origin: Origin::Files(&[
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ]),
    installed: None,
    licence: "CC BY-SA 3.0",
    citation: "LeCun, Cortes and Burges (1998), The MNIST database of handwritten digits",
};

static FASHION_MNIST: Info = Info {
    summary: "pieces of clothing, 28x28 grey",
    shape: Some([1, 28, 28]),
    examples: Some([60_000, 10_000]),
    files: &[
        file(
            "train-images-idx3-ubyte",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        file(
            "train-labels-idx1-ubyte",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        file(
            "t10k-images-idx3-ubyte",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        file(
            "t10k-labels-idx1-ubyte",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ],
    origin: Origin::Files(&["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"]),
    installed: Some("/usr/share/datasets/fashion-mnist"),
    licence: "MIT",
    citation: "Xiao, Rasul and Vollgraf (2017), Fashion-MNIST, arXiv:1708.07747",
};

static CIFAR10: Info = Info {
    summary: "photographs of 10 kinds of things, 32x32 colour",
    shape: Some([3, 32, 32]),
    examples: Some([50_000, 10_000]),
    files: &[
        file(
            "data_batch_1.bin",
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        ),
        file(
            "data_batch_2.bin",
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        ),
        file(
            "data_batch_3.bin",
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        ),
        file(
            "data_batch_4.bin",
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        ),
        file(
            "data_batch_5.bin",
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        ),
        file(
            "test_batch.bin",
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        ),
    ],
    origin: Origin::Archive(
        "cifar-10-binary.tar.gz",
        &[
            "https://www.cs.toronto.edu/~kriz/",
            "https://ossci-datasets.s3.amazonaws.com/",
        ],
    ),
    installed: None,
    licence: "none stated",
    citation: "Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images",
};

static CIFAR100: Info = Info {
    summary: "photographs of 100 kinds of things, 32x32 colour",
    shape: Some([3, 32, 32]),
    examples: Some([50_000, 10_000]),
    files: &[
        file(
            "train.bin",
            "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        ),
        file(
            "test.bin",
            "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        ),
    ],
    origin: Origin::Archive(
        "cifar-100-binary.tar.gz",
        &["https://www.cs.toronto.edu/~kriz/"],
    ),
    installed: None,
    licence: "none stated",
    citation: "Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images",
};

static IMAGE_FOLDER: Info = Info {
    summary: "your own PNG or JPEG files: train/CLASS/*.png, test/CLASS/*.png",
    shape: None,
    examples: None,
    files: &[],
    origin: Origin::Folder,
    installed: None,
    licence: "yours",
    citation: "",
};

const CIFAR100_CLASSES: &str = "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus \
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup \
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion \
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear \
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew \
    skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger \
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_classes_are_as_many_as_they_should_be() {
        for source in Source::ALL {
            assert_eq!(source.name().parse(), Ok(source));
            assert_eq!(serde_json::to_value(source).unwrap(), source.name());
        }
        assert!("minst".parse::<Source>().unwrap_err().contains("mnist"));
        assert_eq!(Source::Cifar100.classes().len(), 100);
        assert_eq!(Source::FashionMnist.classes()[9], "ankle-boot");
    }
}
