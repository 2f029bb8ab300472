"""kdexport's distill stage against the loop that tutorials teach, on two pairs of networks.

    tar xf cifar10-jpg.tar.xz
    python benchmarks/engine_vs_plain_loop.py --data cifar10-jpg            # about 15 minutes on 2 free cores
    python benchmarks/engine_vs_plain_loop.py --data cifar10-jpg --pair mlp # 6 of them
    python benchmarks/engine_vs_plain_loop.py --data cifar10-jpg --smoke

The loop: a DataLoader over images in memory that become PIL pictures, then torchvision's ToTensor and Normalize (and
RandomCrop and RandomHorizontalFlip for the residual pair), with 0 or 2 workers, whichever is faster here; in each
step the teacher's forward pass under no_grad, nn.KLDivLoss(reduction="batchmean") times T², cross-entropy, an
optimizer. kdexport: the public stage. Both have the same networks, teacher weights, images, batch, epochs, optimizer,
rates and two threads, and take turns in fresh processes. Neither decodes a file: that would favour kdexport further.

Pairs: 784-1200-1200-10 to 784-800-10 on 28x28 grey images (CIFAR-10's in MNIST's form), and ResNet-56 to ResNet-20 on
32x32.

"steady" compares epochs that read the teacher's kept answers with epochs of the loop; "whole training" is all epochs,
the filling of the cache included; "whole call" also counts what the loop doesn't do at all: reading and hashing the
data, scoring on validation samples and writing a checkpoint after each epoch.

Must hold: steady at least 5 times faster on the first pair and 2.3 times on the second, accuracies equal within noise.
``speedup_by_arithmetic_alone`` is what leaving out the teacher's floating-point operations would give by itself.
"""

from engine_common import arguments, in_fresh_process, keep
from engine_pairs import MLP_PAIR, RESNET_PAIR, plain_loop
from engine_race import HEAD, parts_ms, prepared, race, row

MUST_HOLD = {"mlp": 5.0, "resnet": 2.3}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pair", choices=list(MUST_HOLD), help="only this one")
    parser.add_argument("--rounds", type=int, help="default: 5 of the first pair, 3 of the second")
    options = parser.parse_args()
    found = []
    for pair, rounds in ((MLP_PAIR, 5), (RESNET_PAIR, 3)):
        if options.pair in (None, pair.name):
            work = options.work / "plain"
            smaller, data, teacher = prepared(pair, options.data, options.work, options.smoke)
            rounds = 1 if options.smoke else options.rounds or rounds
            result = race(smaller, plain_loop, data, teacher, work / pair.name, rounds)
            result["parts"] = in_fresh_process(parts_ms, smaller, data, teacher["weights"], 30, threads=2)
            result["must_hold"] = MUST_HOLD[pair.name]
            result["holds"] = result["steady"]["times_faster"] >= MUST_HOLD[pair.name]
            found.append(result)
    name = "engine_vs_plain_loop" + (f"_{options.pair}" if options.pair else "")
    table = "\n".join([HEAD, *(row(one, one["must_hold"]) for one in found)]) + "\n"
    keep(options.out, name, {"threads": 2, "pairs": found}, smoke=options.smoke, table=table)


if __name__ == "__main__":
    main()
