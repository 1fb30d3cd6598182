"""An array of images as a Zarr array of diffcodec's chunks, written and read by many processes.

pip install 'diffcodec[zarr,dask]'
python examples/zarr_dask.py test.npy test.zarr --model cifar10

On a cluster with an object store the same, with its scheduler and a URL that all workers reach::

python examples/zarr_dask.py test.npy s3://bucket/test.zarr --scheduler tcp://host:8786

Dask gives a chunk that a lost worker had to another; a chunk is written whole or not at all.
"""

import argparse
import time

import dask.array
import numpy as np
import zarr
from dask.distributed import Client, LocalCluster

from diffcodec.zarr import DiffCodec


def write(images: np.ndarray, store: str, codec: DiffCodec, chunk: int) -> None:
    """Write images [n, h, w, 3], so many to a chunk, by the workers of the current client."""
    shape = (chunk, *images.shape[1:])
    target = zarr.create_array(
        store, shape=images.shape, chunks=shape, dtype="uint8", serializer=codec, compressors=None
    )
    dask.array.store(dask.array.from_array(images, shape), target, lock=False)


def differences(images: np.ndarray, store: str) -> int:
    """How many samples of a store differ from the images, by the workers too."""
    found = dask.array.from_zarr(store)
    return int((found != dask.array.from_array(images, found.chunksize)).sum().compute())


def main() -> None:
    """Write, read and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", help="A .npy file of uint8 [n, h, w, 3].")
    parser.add_argument("store", help="A folder, or a URL.")
    parser.add_argument("--model", default="photo")
    parser.add_argument("--chunk", type=int, default=64, help="Images that share a stack.")
    parser.add_argument("--limit", type=int, help="Only the first so many images.")
    parser.add_argument("--workers", type=int, default=2, help="Of a cluster on this machine.")
    parser.add_argument("--scheduler", help="The address of another cluster's scheduler.")
    given = parser.parse_args()
    images = np.load(given.images, mmap_mode="r")[: given.limit]
    cluster = given.scheduler or LocalCluster(n_workers=given.workers, threads_per_worker=1)
    with Client(cluster):
        start = time.perf_counter()
        write(images, given.store, DiffCodec(model=given.model), given.chunk)
        written = time.perf_counter()
        wrong = differences(images, given.store)
        read = time.perf_counter()
    seconds = f"written in {written - start:.1f} s, read in {read - written:.1f} s"
    print(f"{len(images)} images: {seconds}")
    if wrong:
        raise SystemExit(f"{wrong} samples came back other than they were")


if __name__ == "__main__":
    main()
