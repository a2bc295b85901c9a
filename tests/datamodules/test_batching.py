"""Batches of similar length: what is in them, in which order, and who gets them."""

from collections import Counter

import numpy as np
import pytest
import torch

from datamodules.batching import Batch, EvaluationBatchSampler, LengthBucketBatchSampler, collate_tokens
from tests.support.tolerances import allowed

LENGTHS = np.random.default_rng(0).integers(500, 2000, size=1037)


def _batches(epoch: int = 0, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    sampler = LengthBucketBatchSampler(LENGTHS, 10, seed=seed, pool_batches=20, rank=rank, world_size=world_size)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


def _padding(batches: list[list[int]]) -> float:
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    return float(1 - sum(LENGTHS[batch].sum() for batch in batches) / padded)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert _batches(3, seed=5) == _batches(3, seed=5)
    assert len({str(_batches(epoch, seed=seed)) for epoch in range(3) for seed in range(3)}) == 9


def test_one_process_sees_every_sample_once() -> None:
    assert sorted(index for batch in _batches(2) for index in batch) == list(range(1037))


def test_drop_last_leaves_out_the_one_small_batch() -> None:
    sampler = LengthBucketBatchSampler(LENGTHS, 10, seed=0, drop_last=True)
    assert [len(batch) for batch in sampler] == [10] * 103
    assert len(sampler) == 103


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_begins_with_the_samples_that_come_first(world_size: int) -> None:
    samplers = [
        LengthBucketBatchSampler(LENGTHS, 4, seed=1, first=50, first_batch_size=6, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(3)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        count = -(-50 // (6 * world_size))
        assert [len(batch) for batch in batches[:count]].count(6) >= count - 1
        assert max(len(batch) for batch in batches[count:]) == 4
        assert all(index < 50 for batch in batches[:count] for index in batch)
        assert all(index >= 50 for batch in batches[count:] for index in batch)
    seen = sorted(index for sampler in samplers for batch in sampler for index in batch)
    assert seen == sorted(set(seen))
    assert len(seen) > len(LENGTHS) - 2 * world_size
    with pytest.raises(ValueError, match=r"got 1 samples, not one batch each"):
        LengthBucketBatchSampler(LENGTHS, 4, seed=1, first=1, world_size=2)


def test_bucketing_saves_padding() -> None:
    order = np.random.default_rng(1).permutation(1037)
    scattered = [order[start : start + 10].tolist() for start in range(0, 1037, 10)]
    # Uniform lengths on 500..2000: the longest of 10 is near 1864 against a mean of 1250, so a third is
    # padding. In a pool of 200 sorted lengths a batch spans 1500 / 20 = 75: padding is near 37 / 1287 = 3 %.
    assert _padding(scattered) == pytest.approx(0.33, abs=allowed(0.02, "that estimate"))
    assert _padding(_batches()) < 0.04


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_each_batch_of_one_process(world_size: int) -> None:
    """Any number of processes trains on the same batches in the same order; 1037 = 86 * 12 + 5, evenly shared."""

    def batches(rank: int = 0, world_size: int = 1) -> list[list[int]]:
        sampler = LengthBucketBatchSampler(
            LENGTHS, 12 // world_size, seed=4, pool_batches=20, rank=rank, world_size=world_size
        )
        sampler.set_epoch(1)
        return list(sampler)

    whole = batches()
    shards = [batches(rank, world_size) for rank in range(world_size)]
    assert {len(shard) for shard in shards} == {len(whole)} == {87}
    left_out = 0
    for batch, *parts in zip(whole, *shards, strict=True):
        assert len({len(part) for part in parts}) == 1
        shared = Counter(index for part in parts for index in part)
        assert set(shared.values()) == {1}
        assert shared.keys() <= set(batch)
        left_out += len(batch) - len(shared)
    assert left_out == 5 % world_size


def test_resume_goes_on_in_the_same_epoch_and_starts_the_next_one_anew() -> None:
    sampler = LengthBucketBatchSampler(LENGTHS, 10, seed=0, pool_batches=20)
    sampler.resume(epoch=2, done=7)
    assert list(sampler) == _batches(2)[7:]
    assert len(sampler) == len(_batches(2))
    sampler.set_epoch(3)
    assert list(sampler) == _batches(3)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("samples", "batch_size"), [(1037, 50), (1037, 1), (4, 3), (5, 1), (100, 1000)])
def test_evaluation_covers_each_sample_once(samples: int, batch_size: int, world_size: int) -> None:
    lengths = LENGTHS[:samples]
    samplers = [
        EvaluationBatchSampler(lengths, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    shards = [list(sampler) for sampler in samplers]
    assert sorted(index for shard in shards for batch in shard for index in batch) == list(range(samples))
    assert {len(shard) for shard in shards} == {len(samplers[0])}  # no rank waits for another
    assert all(0 < len(batch) <= max(batch_size, 2) for shard in shards for batch in shard)
    samplers[0].set_epoch(5)
    assert list(samplers[0]) == shards[0]


def test_evaluation_in_the_samples_own_order() -> None:
    batches = list(EvaluationBatchSampler(LENGTHS, 50, sort=False))
    assert [index for batch in batches for index in batch] == list(range(1037))


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batches of 50 on each of 4 processes, got 3 samples"):
        LengthBucketBatchSampler(LENGTHS[:3], 50, seed=0, world_size=4)
    with pytest.raises(ValueError, match="evaluate on 4 processes, got 3 samples"):
        EvaluationBatchSampler(LENGTHS[:3], 50, world_size=4)
    with pytest.raises(ValueError, match="give batch_size >= 1"):
        LengthBucketBatchSampler(LENGTHS, 0, seed=0)


def test_collate_pads_to_the_longest() -> None:
    batch = collate_tokens([np.array([5, 6], dtype=np.uint8), np.array([7], dtype=np.uint8)], [1, 9])
    assert isinstance(batch, Batch)
    assert batch.x.tolist() == [[5, 6], [7, 0]]
    assert batch.y.tolist() == [1, 9]
    assert batch.lengths.tolist() == [2, 1]
    assert {batch.x.dtype, batch.y.dtype, batch.lengths.dtype} == {torch.int64}
    assert batch.sample_index is None
