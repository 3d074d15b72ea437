"""Other registration tools, each called as its documentation suggests for such images, in a process of its own.

    python -m benchmarks.peers NAME JOB.json

writes into the job's folder the moved labels (`LABELS`), the displacement in LPS mm on the fixed grid without the
linear part (`WARP`) and the seconds of each step (`SECONDS`). Reading and warping are the same code for all: labels
go once, by nearest neighbour, through the displacement and the linear transform.

Settings were tried on a pair that is not part of the benchmark (Mindboggle 1<-4 at 2 mm).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .cases import Job

if TYPE_CHECKING:
    import SimpleITK as sitk

LABELS, WARP, SECONDS = "moved_labels.nii.gz", "warp.mha", "seconds.json"
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Task:
    """What a peer gets: images in memory (float32, air at 0), the job, and a clock for its steps."""

    job: Job
    fixed: sitk.Image
    moving: sitk.Image
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Found:
    """x -> linear @ (x + displacement(x)): a 4x4 in LPS mm, and (k, j, i, 3) LPS mm on the fixed grid."""

    displacement: np.ndarray
    linear: np.ndarray = field(default_factory=lambda: np.eye(4))


@dataclass(frozen=True)
class Peer:
    """A tool: the package that pip installs, the module it brings, and the function that runs it."""

    package: str
    module: str
    run: Callable[[Task], Found]


def without_linear(total: np.ndarray, linear: np.ndarray, image: sitk.Image) -> np.ndarray:
    """The displacement u of x -> linear @ (x + u(x)), from the total displacement (k, j, i, 3) in LPS mm."""
    from RegMambaLib.spatial.grid import Grid

    grid = Grid.of(image)
    k, j, i = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    here = grid.world(np.stack([i, j, k], -1))
    back = np.linalg.inv(linear)
    return (here + total) @ back[:3, :3].T + back[:3, 3] - here


def ants_image(image: sitk.Image):
    import ants
    import SimpleITK as sitk

    direction = np.array(image.GetDirection()).reshape(3, 3)
    # ANTsPy's arrays are (i, j, k).
    array = sitk.GetArrayFromImage(image).transpose()
    return ants.from_numpy(array, image.GetOrigin(), image.GetSpacing(), direction)


def run_ants(task: Task, metric: str, sampling: int, iterations: tuple[int, ...]) -> Found:
    """Affine stage (where it is needed) and SyN stage of ANTsPy, called one after the other to be timed."""
    import ants
    import SimpleITK as sitk

    from RegMambaLib.spatial.itk import affine_matrix

    fixed, moving = ants_image(task.fixed), ants_image(task.moving)
    prefix, linear, start = str(task.job.folder / "ants_"), np.eye(4), "Identity"
    if not task.job.aligned:
        with task.step("linear"):
            start = ants.registration(fixed, moving, "Affine", outprefix=prefix + "a_")["fwdtransforms"][0]
            linear = affine_matrix(sitk.ReadTransform(start))
    options = {"syn_metric": metric, "syn_sampling": sampling, "reg_iterations": iterations}
    with task.step("deform"):
        found = ants.registration(fixed, moving, "SyNOnly", initial_transform=start, outprefix=prefix, **options)
        warp = next(path for path in found["fwdtransforms"] if path.endswith("Warp.nii.gz"))
        return Found(sitk.GetArrayFromImage(sitk.ReadImage(warp)), linear)


def run_ants_default(task: Task) -> Found:
    """SyN with ANTsPy's own defaults: mutual information, 40x20x0 iterations."""
    return run_ants(task, "mattes", 32, (40, 20, 0))


def run_ants_cc(task: Task) -> Found:
    """SyN with cross-correlation of radius 4, 100x70x50x20 iterations: the ANTs authors' setting for brains."""
    return run_ants(task, "CC", 4, (100, 70, 50, 20))


def run_greedy(task: Task, iterations: str) -> Found:
    """Greedy with NCC 2x2x2, as its authors suggest for brains."""
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    tool, linear, start = Greedy3D(), np.eye(4), ""
    images = {"fixed": task.fixed, "moving": task.moving}
    common = f"-i fixed moving -m NCC 2x2x2 -threads {task.job.threads} -V 0"
    if not task.job.aligned:
        with task.step("linear"):
            matrix = task.job.folder / "affine.mat"
            tool.execute(f"{common} -a -dof 12 -ia-image-centers -n 100x50x10 -o {matrix}", **images)
            start, linear = f"-it {matrix}", RAS_LPS @ np.loadtxt(matrix) @ RAS_LPS
    with task.step("deform"):
        tool.execute(f"{common} {start} -n {iterations} -o warp", warp=None, **images)
        return Found(sitk.GetArrayFromImage(tool["warp"]), linear)


def itk_image(image: sitk.Image):
    import itk
    import SimpleITK as sitk

    copy = itk.image_from_array(sitk.GetArrayFromImage(image))
    copy.SetOrigin(image.GetOrigin())
    copy.SetSpacing(image.GetSpacing())
    copy.SetDirection(itk.matrix_from_array(np.array(image.GetDirection()).reshape(3, 3)))
    return copy


def elastix_matrix(parameters) -> np.ndarray:
    """The 4x4 of elastix's affine transform: A (x - center) + center + translation."""
    numbers = np.array([float(value) for value in parameters["TransformParameters"]])
    center = np.array([float(value) for value in parameters["CenterOfRotationPoint"]])
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:] + center - matrix[:3, :3] @ center
    return matrix


# Elastix suggests its correlation metric for images of one contrast. Its default mutual information and ten times the
# bending energy gave less Dice; samples and grid spacing were not varied alone. The price is some folds, reported.
ELASTIX_SPLINE = {
    "Metric": ["AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"],
    "Metric1Weight": ["0.1"],
    "FinalGridSpacingInPhysicalUnits": ["5.0"],
    "GridSpacingSchedule": ["8.0", "4.0", "2.0", "1.0"],
    "MaximumNumberOfIterations": ["500"],
    "NumberOfSpatialSamples": ["4096"],
}


def run_elastix(task: Task) -> Found:
    """Elastix: its default affine map, then cubic B-splines with `ELASTIX_SPLINE`."""
    import itk

    os.chdir(task.job.folder)  # transformix leaves a deformationField.nii where it runs
    fixed, moving = itk_image(task.fixed), itk_image(task.moving)
    linear, start = np.eye(4), {}
    # Its own option `number_of_threads` above 1 ends it with a segmentation fault (ITKElastix issue 160).
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(task.job.threads)
    options = {"log_to_console": False}
    if not task.job.aligned:
        with task.step("linear"):
            maps = itk.ParameterObject.New()
            affine = maps.GetDefaultParameterMap("affine", 4)
            affine["AutomaticTransformInitialization"] = ["true"]
            affine["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
            maps.AddParameterMap(affine)
            _, found = itk.elastix_registration_method(fixed, moving, parameter_object=maps, **options)
            linear = elastix_matrix(found.GetParameterMap(0))
            path = str(task.job.folder / "affine.txt")
            found.WriteParameterFile(path)
            start = {"initial_transform_parameter_file_name": path}
    with task.step("deform"):
        maps = itk.ParameterObject.New()
        spline = maps.GetDefaultParameterMap("bspline", 4)
        for name, value in ELASTIX_SPLINE.items():
            spline[name] = value
        maps.AddParameterMap(spline)
        _, found = itk.elastix_registration_method(fixed, moving, parameter_object=maps, **options, **start)
        total = itk.array_from_image(itk.transformix_deformation_field(moving, found))
        return Found(without_linear(total.astype(np.float64), linear, task.fixed), linear)


def simpleitk_affine(task: Task) -> np.ndarray:
    """An affine by mutual information, for tools that have none."""
    import SimpleITK as sitk

    from RegMambaLib.spatial.itk import affine_matrix

    method = sitk.ImageRegistrationMethod()
    start = sitk.CenteredTransformInitializer(
        task.fixed, task.moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method.SetInitialTransform(start)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 100, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([8, 4, 2])
    method.SetSmoothingSigmasPerLevel([3, 2, 1])
    return affine_matrix(method.Execute(task.fixed, task.moving))


def run_convexadam(task: Task) -> Found:
    """ConvexAdam with MIND features and its own defaults; the affine, where needed, is SimpleITK's."""
    import SimpleITK as sitk
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    from RegMambaLib.spatial.grid import Grid
    from RegMambaLib.spatial.itk import affine_transform, voxels_to_mm

    linear, grid = np.eye(4), Grid.of(task.fixed)
    if not task.job.aligned:
        with task.step("linear"):
            linear = simpleitk_affine(task)
    with task.step("deform"):
        moving = grid.resample(task.moving, affine_transform(linear))
        images = [torch.from_numpy(sitk.GetArrayFromImage(image)) for image in (task.fixed, moving)]
        dtype = torch.float16 if torch.cuda.is_available() else torch.float32
        found = convex_adam_pt(*images, dtype=dtype)
        return Found(voxels_to_mm(np.moveaxis(found, -1, 0), grid), linear)


# Scales, iterations and window of FireANTs' script for LPBA40, smoothing and step of its script for OASIS: together
# better than either.
FIRE = {
    "scales": [4, 2, 1],
    "iterations": [200, 100, 50],
    "cc_kernel_size": 7,
    "smooth_grad_sigma": 1,
    "smooth_warp_sigma": 0.25,
    "optimizer_lr": 0.25,
}


def run_fireants(task: Task) -> Found:
    """FireANTs: moments and affine, then its greedy registration with `FIRE`."""
    import SimpleITK as sitk
    import torch
    from fireants.io.image import BatchedImages, Image
    from fireants.registration.affine import AffineRegistration
    from fireants.registration.greedy import GreedyRegistration
    from fireants.registration.moments import MomentsRegistration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = [BatchedImages(Image(image, device=device)) for image in (task.fixed, task.moving)]
    linear, matrix = np.eye(4), None
    if not task.job.aligned:
        with task.step("linear"):
            moments = MomentsRegistration(4, *images, moments=1)
            moments.optimize()
            affine = AffineRegistration(
                [8, 4, 2, 1],
                [200, 100, 50, 20],
                *images,
                init_rigid=moments.get_affine_init(),
                optimizer_lr=3e-3,
                cc_kernel_size=5,
                progress_bar=False,
            )
            affine.optimize()
            matrix = affine.get_affine_matrix().detach()
            linear = matrix[0].cpu().numpy().astype(np.float64)
    with task.step("deform"):
        deformable = GreedyRegistration(
            fixed_images=images[0], moving_images=images[1], init_affine=matrix, progress_bar=False, **FIRE
        )
        deformable.optimize()
        path = str(task.job.folder / "fireants.nii.gz")
        deformable.save_as_ants_transforms(path)
        total = sitk.GetArrayFromImage(sitk.ReadImage(path)).astype(np.float64)
        return Found(without_linear(total, linear, task.fixed), linear)


def run_pyniftireg(task: Task) -> Found:
    """pyniftireg, NiftyReg rewritten in PyTorch, with its defaults and NiftyReg's regularisation weights."""
    import SimpleITK as sitk
    import torch
    from pyniftireg import ImageSpace, TorchReg, TorchRegParams, from_niftyreg_weights
    from pyniftireg.flow import exp

    from RegMambaLib.spatial.grid import Grid

    def arguments(image: sitk.Image):
        return sitk.GetArrayFromImage(image).transpose(), ImageSpace(
            image.GetSize(), RAS_LPS @ Grid.of(image).index_to_world
        )

    (fixed, fixed_space), (moving, moving_space) = arguments(task.fixed), arguments(task.moving)
    settings = from_niftyreg_weights(bending_energy=0.001, linear_elasticity=0.01, jacobian_log=0.0)
    tool = TorchReg(TorchRegParams(**settings))
    result = tool.register(
        fixed,
        moving,
        reference_space=fixed_space,
        floating_space=moving_space,
        affine=np.eye(4) if task.job.aligned else None,
    )
    task.seconds["linear"] = 0.0 if task.job.aligned else result.qc["time_affine_s"]
    task.seconds["deform"] = result.qc["time_nonrigid_s"]
    with task.step("deform"), torch.no_grad():
        voxels = exp(result.velocity)[0].numpy().astype(np.float64)
        displacement = voxels.transpose(3, 2, 1, 0) @ Grid.of(task.fixed).axes.T
        return Found(displacement, RAS_LPS @ result.affine @ RAS_LPS)


PEERS = {
    "ANTs SyN": Peer("antspyx", "ants", run_ants_default),
    "ANTs SyN CC": Peer("antspyx", "ants", run_ants_cc),
    "greedy 100x50x10": Peer("picsl-greedy", "picsl_greedy", lambda task: run_greedy(task, "100x50x10")),
    "greedy 100x100x50": Peer("picsl-greedy", "picsl_greedy", lambda task: run_greedy(task, "100x100x50")),
    "elastix": Peer("itk-elastix", "itk", run_elastix),
    "ConvexAdam": Peer("convexadam", "convexAdam", run_convexadam),
    "FireANTs": Peer("fireants", "fireants", run_fireants),
    "pyniftireg": Peer("pyniftireg", "pyniftireg", run_pyniftireg),
}


def run(name: str, job: Job) -> None:
    """Run one peer: read, register, warp the labels, write."""
    began = time.perf_counter()
    import SimpleITK as sitk

    from RegMambaLib.spatial.grid import Grid
    from RegMambaLib.spatial.itk import affine_transform

    images = [sitk.ReadImage(str(path), sitk.sitkFloat32) - job.air for path in (job.fixed, job.moving)]
    labels = sitk.ReadImage(str(job.moving_labels))
    task = Task(job, *images)
    task.seconds["read"] = time.perf_counter() - began
    grid = Grid.of(task.fixed)
    with task.step("all"):
        found = PEERS[name].run(task)
    with task.step("write"):
        warp = grid.image(found.displacement.astype(np.float64))
        sitk.WriteImage(sitk.Cast(warp, sitk.sitkVectorFloat32), str(job.folder / WARP))
        chain = sitk.CompositeTransform([affine_transform(found.linear), sitk.DisplacementFieldTransform(warp)])
        sitk.WriteImage(grid.resample(labels, chain, labels=True), str(job.folder / LABELS))
    (job.folder / SECONDS).write_text(json.dumps(task.seconds), encoding="utf-8")


if __name__ == "__main__":
    run(sys.argv[1], Job.read(Path(sys.argv[2])))
