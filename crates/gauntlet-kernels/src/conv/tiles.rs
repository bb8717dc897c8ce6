//! How the matrix products of convolutions are cut into pieces for a GPU's matrix units.
//!
//! Left to itself CubeK gives a group of units 256 rows by 128 columns, half of which is empty where a layer has 64 channels, with
//! depths of 32 between two waits. [`Tile`] says otherwise; everything else is CubeK's. Sizes were found by measuring
//! (`benches/RESULTS.md`, "Tiles").

use std::fmt;
use std::marker::PhantomData;

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::features::MmaConfig;
use burn_cubecl::cubecl::ir::{AddressType, ElemType};
use burn_cubecl::cubecl::prelude::TensorBinding;
use burn_cubecl::cubecl::server::LaunchError;
use burn_cubecl::cubecl::{CubeCount, CubeDim};
use burn_cubecl::tensor::CubeTensor;
use cubek::convolution::components::global::args::RuntimeArgs;
use cubek::convolution::components::global::read::strategy::sync_bias::SyncBiasLoading;
use cubek::convolution::components::{ConvolutionOperation, ConvolutionProblem, Dimensionality};
use cubek::convolution::routines::Routine;
use cubek::convolution::{backward_data, forward};
use cubek::matmul::definition::{
    MatmulAvailabilityError, MatmulElems, MatmulGlobalElems, MatmulProblem, MatmulSetupError,
    MatmulVectorSizes,
};
use cubek::matmul::multi_level::args::{
    ConfigRuntimeArg, InputRuntimeArg, MatmulArgs, OutputRuntimeArg, RuntimeConfig, TensorArgs,
};
use cubek::matmul::multi_level::components::global::read::async_partial_strided::AsyncPartialStridedLoading;
use cubek::matmul::multi_level::components::global::read::sync_full_strided::SyncFullStridedLoading;
use cubek::matmul::multi_level::components::global::{InputLoadFlow, LoadFlows};
use cubek::matmul::multi_level::components::stage::{NumStages, PartitionBuffering};
use cubek::matmul::multi_level::components::tile::TileMatmulKind;
use cubek::matmul::multi_level::definition::{
    BatchMatmulBlueprint, CubeMappingLaunch, TilingScheme, adjust_dtypes,
};
use cubek::matmul::multi_level::routines::batch::launch::{launch_ref, launch_ref_tma};
use cubek::matmul::multi_level::routines::batch::simple::SimpleAlgorithm;
use cubek::matmul::multi_level::routines::batch::specialized::SpecializedAlgorithm;
use cubek::matmul::multi_level::routines::select_swizzle;
use cubek::matmul::multi_level::stage::SwizzleModes;
use cubek::matmul::multi_level::{BatchMatmulRoutine, ExpandInfo, LaunchInfo};
use cubek::matmul::routine::{BlueprintStrategy, DeviceSettings, Routine as MatmulRoutine};
use cubek::std::cube_count::{CubeCountStrategy, GlobalOrder, HypercubeBlueprint, SmAllocation};
use cubek::std::{InputBinding, MatrixLayout};

use super::gemm::Window;
use crate::cube::elem;

/// What one group of units computes, in steps of the matrix unit: 16 rows, 8 columns, 32 bytes of the inner dimension.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tile {
    /// Planes (NVIDIA's warps), each with rows of its own.
    planes: u32,
    rows_of_a_plane: u32,
    columns: u32,
    /// Of the inner dimension, between two waits.
    depth: u32,
}

/// 128 x 64, 128 bytes deep.
pub(super) const FORWARD: Tile = Tile {
    planes: 4,
    rows_of_a_plane: 2,
    columns: 8,
    depth: 4,
};

/// 256 x 64, 64 bytes deep.
pub(super) const INPUT_GRADIENT: Tile = Tile {
    planes: 4,
    rows_of_a_plane: 4,
    columns: 8,
    depth: 2,
};

/// 64 x 64, 128 bytes deep.
const WEIGHT_GRADIENT: Tile = Tile {
    planes: 2,
    rows_of_a_plane: 2,
    columns: 8,
    depth: 4,
};

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

const ROWS: u32 = 16;
const COLUMNS: u32 = 8;
const BYTES: u32 = 32;

impl Tile {
    fn blueprint(
        self,
        problem: &MatmulProblem,
        device: &DeviceSettings,
        dtypes: &MatmulElems,
        stages: u32,
    ) -> Result<BatchMatmulBlueprint, MatmulSetupError> {
        let kind = TileMatmulKind::Mma;
        let inner = BYTES / dtypes.lhs_register.size() as u32;
        let config = MmaConfig {
            a_type: dtypes.lhs_register,
            b_type: dtypes.rhs_register,
            cd_type: dtypes.acc_register,
            m: ROWS,
            n: COLUMNS,
            k: inner,
        };
        if !kind.is_supported(&device.client, config) {
            let error = MatmulAvailabilityError::TileSizeNotFound;
            return Err(MatmulSetupError::Unavailable(error));
        }
        let columns = (problem.n as u32).div_ceil(COLUMNS).next_power_of_two();
        let scheme = TilingScheme::builder()
            .with_tile_size((ROWS, COLUMNS, inner).into())
            .with_partition_size(
                (self.rows_of_a_plane, columns.min(self.columns), self.depth).into(),
            )
            .with_stage_size((self.planes, 1, 1).into())
            .build()
            .map_err(|error| MatmulSetupError::InvalidConfig(Box::new(error)))?;

        let [rows, columns, depth] = [
            scheme.elements_per_stage_along_m(),
            scheme.elements_per_stage_along_n(),
            scheme.elements_per_stage_along_k(),
        ];
        let mut swizzle_modes = SwizzleModes::default();
        if kind.should_swizzle(&device.client) {
            let vectors = &device.vector_sizes;
            let lhs = match problem.lhs_layout {
                MatrixLayout::RowMajor => depth,
                MatrixLayout::ColMajor => rows,
            };
            let rhs = match problem.rhs_layout {
                MatrixLayout::RowMajor => columns,
                MatrixLayout::ColMajor => depth,
            };
            swizzle_modes.lhs = select_swizzle(lhs as usize, dtypes.lhs_stage, vectors.lhs);
            swizzle_modes.rhs = select_swizzle(rhs as usize, dtypes.rhs_stage, vectors.rhs);
        }
        let hardware = &device.client.properties().hardware;
        let cubes = match hardware.num_streaming_multiprocessors {
            Some(num_sms) => CubeCountStrategy::Sm {
                num_sms,
                sm_usage: SmAllocation::Exact,
                cubes_first: true,
            },
            None => CubeCountStrategy::FromProblem,
        };
        // Two stages: some planes load the next while the others multiply.
        let flow = match stages {
            1 => InputLoadFlow::MainOnly,
            _ => InputLoadFlow::LoadOnly,
        };
        Ok(
            BatchMatmulBlueprint::builder(kind, scheme, device.plane_dim, problem)
                .partition_buffering(PartitionBuffering::Single)
                .stage_buffering(stages)
                .shared_swizzle(swizzle_modes)
                .load_specialization_config(LoadFlows {
                    lhs: flow,
                    rhs: flow,
                })
                .hypercube_blueprint(
                    HypercubeBlueprint::builder()
                        .global_order(GlobalOrder::SwizzleRow(4))
                        .cube_count_strategy(cubes)
                        .build(),
                )
                .build(),
        )
    }
}

/// CubeK's routine `A`, in tiles of ours.
struct Tiled<A>(PhantomData<A>);

impl<RC: RuntimeConfig, A> MatmulRoutine<RC> for Tiled<A> {
    type Strategy = Tile;
    type Blueprint = BatchMatmulBlueprint;
}

impl<RC: RuntimeConfig, A> BatchMatmulRoutine<RC> for Tiled<A>
where
    A: BatchMatmulRoutine<RC, Blueprint = BatchMatmulBlueprint>,
{
    fn launch<MA: MatmulArgs<Config = RC>>(
        client: &Client,
        cube_dim: CubeDim,
        cube_count: CubeCount,
        address_type: AddressType,
        input: InputRuntimeArg<MA>,
        output: OutputRuntimeArg<MA>,
        config: ConfigRuntimeArg<MA>,
        mapping: CubeMappingLaunch,
        blueprint: BatchMatmulBlueprint,
        dtypes: &MatmulElems,
        vectors: &MatmulVectorSizes,
    ) -> Result<(), MatmulSetupError> {
        A::launch::<MA>(
            client,
            cube_dim,
            cube_count,
            address_type,
            input,
            output,
            config,
            mapping,
            blueprint,
            dtypes,
            vectors,
        )
    }

    fn expand_blueprint(
        problem: &MatmulProblem,
        device: &DeviceSettings,
        strategy: &BlueprintStrategy<RC, Self>,
    ) -> Result<ExpandInfo<BatchMatmulBlueprint>, MatmulSetupError> {
        let mut dtypes = MatmulElems::from_globals(&problem.global_dtypes);
        dtypes.adjust_stage_dtypes();
        adjust_dtypes(&device.client, &mut dtypes, true);
        let blueprint = match strategy {
            BlueprintStrategy::Forced(blueprint) => blueprint.clone(),
            BlueprintStrategy::Inferred(tile) => {
                let stages = A::num_stages().stage_buffering();
                tile.blueprint(problem, device, &dtypes, stages)?
            }
        };
        Ok(ExpandInfo { blueprint, dtypes })
    }

    fn prepare(
        problem: &MatmulProblem,
        device: &DeviceSettings,
        info: ExpandInfo<BatchMatmulBlueprint>,
    ) -> Result<LaunchInfo<BatchMatmulBlueprint>, MatmulSetupError> {
        A::prepare(problem, device, info)
    }

    fn num_stages() -> NumStages {
        A::num_stages()
    }

    fn validate_blueprint(
        client: &Client,
        blueprint: &BatchMatmulBlueprint,
        problem: &MatmulProblem,
        dtypes: &MatmulElems,
        vectors: &MatmulVectorSizes,
    ) -> Result<(), MatmulSetupError> {
        A::validate_blueprint(client, blueprint, problem, dtypes, vectors)
    }
}

struct TiledConv;

impl Routine for TiledConv {
    type Blueprint = BatchMatmulBlueprint;
    type Strategy = Tile;
    type MatmulRoutine =
        Tiled<SimpleAlgorithm<SyncFullStridedLoading, SyncFullStridedLoading, SyncBiasLoading>>;
    type Args = TensorArgs<RuntimeArgs>;

    fn correct_layout(
        _client: &Client,
        handle: TensorBinding,
        _elem: ElemType,
        _operation: ConvolutionOperation,
    ) -> Result<TensorBinding, LaunchError> {
        Ok(handle)
    }
}

/// Which product of a convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Product {
    Forward,
    InputGradient,
}

/// `out` of `x` (images, or the gradient of what follows) and the kernels `[outputs, rows, columns, inputs]`, all with channels
/// last and contiguous. `false` where the device cannot; nothing is written then.
pub(super) fn convolve(
    product: Product,
    [x, kernels, out]: [&CubeTensor; 3],
    window: Window,
) -> bool {
    let [batch, x_height, x_width, x_channels] = x.shape().dims();
    let [outputs, rows, columns, inputs] = kernels.shape().dims();
    let [_, out_height, out_width, out_channels] = out.shape().dims();
    let element = elem(x.dtype);
    let globals = MatmulGlobalElems {
        lhs: element,
        rhs: elem(kernels.dtype),
        out: elem(out.dtype),
    };
    let bound = |x: &CubeTensor| InputBinding::new(x.clone().binding(), elem(x.dtype));
    let (lhs, rhs, result) = (bound(x), bound(kernels), out.clone().binding());
    let address_type = lhs
        .required_address_type()
        .max(rhs.required_address_type())
        .max(result.required_address_type(globals.out.size()));
    let (in_shape, out_shape, tile) = match product {
        Product::Forward => ([x_height, x_width], [out_height, out_width], FORWARD),
        Product::InputGradient => ([out_height, out_width], [x_height, x_width], INPUT_GRADIENT),
    };
    let both = |sizes: [usize; 2]| sizes.map(|size| size as u32).to_vec();
    let problem = ConvolutionProblem {
        m: batch * out_height * out_width,
        n: out_channels,
        k: rows * columns * x_channels,
        lhs_strides: lhs.data().strides.clone(),
        rhs_strides: rhs.data().strides.clone(),
        lhs_layout: MatrixLayout::RowMajor,
        rhs_layout: match product {
            Product::Forward => MatrixLayout::ColMajor,
            Product::InputGradient => MatrixLayout::RowMajor,
        },
        kernel_size: both([rows, columns]),
        stride: both(window.stride),
        padding: window.padding.map(|size| size as i32).to_vec(),
        dilation: vec![1; 2],
        batches: batch,
        channels: inputs,
        out_channels: outputs,
        in_shape: in_shape.to_vec().into(),
        out_shape: out_shape.to_vec().into(),
        padded_channels: x_channels,
        operation: match product {
            Product::Forward => ConvolutionOperation::Forward,
            Product::InputGradient => ConvolutionOperation::BackwardData,
        },
        dimensionality: Dimensionality::Dim2,
        global_dtypes: globals.clone(),
        address_type,
    };
    let (client, dtypes) = (&x.client, MatmulElems::from_globals(&globals));
    let strategy = BlueprintStrategy::Inferred(tile);
    match product {
        Product::Forward => forward::launch_kernel::<TiledConv>(
            client, lhs, rhs, None, result, problem, &strategy, dtypes,
        ),
        Product::InputGradient => backward_data::launch_kernel::<TiledConv>(
            client, lhs, rhs, result, problem, &strategy, dtypes,
        ),
    }
    .is_ok()
}

/// `out = lhs rhs` of matrices in batches, for few columns and a long inner dimension. `false` where the device cannot; nothing is
/// written then.
pub(super) fn multiply([lhs, rhs, out]: [&CubeTensor; 3]) -> bool {
    let globals = MatmulGlobalElems {
        lhs: elem(lhs.dtype),
        rhs: elem(rhs.dtype),
        out: elem(out.dtype),
    };
    let bound = |x: &CubeTensor| InputBinding::new(x.clone().binding(), elem(x.dtype));
    macro_rules! done {
        ($launch:ident, $algorithm:ty) => {
            $launch::<Tiled<$algorithm>>(
                &out.client,
                bound(lhs),
                bound(rhs),
                out.clone().binding(),
                &BlueprintStrategy::Inferred(WEIGHT_GRADIENT),
                &mut MatmulElems::from_globals(&globals),
            )
            .is_ok()
        };
    }
    // Copies that go past the registers cannot round `f32` to TF32.
    if lhs.dtype == DType::BF16
        && (done!(launch_ref_tma, SpecializedAlgorithm)
            || done!(launch_ref, SpecializedAlgorithm<AsyncPartialStridedLoading>))
    {
        return true;
    }
    done!(
        launch_ref,
        SimpleAlgorithm<SyncFullStridedLoading, SyncFullStridedLoading>
    )
}
