"""Relative entropy coding: a sample of one reverse step, sent in little more than its KL in bits.

DDPM's Algorithms 3 and 4 made real. The encoder knows ``q(z_s | z_t, x) = N(q_mean, Q)``; both
sides know ``p(z_s | z_t) = N(p_mean, Q + W)`` with ``W = (1 - r)^2 v``. In units of p a sample is
``u = (z_s - p_mean) / sqrt(Q + W)``: shared noise has u ~ N(0, 1), and wanted is u ~ N(m, rho) with
``m = (q_mean - p_mean) / sqrt(Q + W)`` and ``rho = Q / (Q + W)``. That is worth
``0.5 log2(1 + W / Q)`` bits, which both sides know for every dimension.

**A trellis instead of chunks.** Usually (Li and El Gamal's Poisson functional representation)
dimensions are cut into chunks of about 8 bits, one of 2^12 shared candidates is chosen for each,
and its index costs a third more than the KL, or less with a bias toward p. Here the candidates are
the paths of a trellis (source coding with random branch letters, Viterbi and Omura 1974). All
dimensions lie on it in pseudo-random order, cut into stages of equal expected bits. A path has one
bit a stage; the shared noise of a stage depends on its bit and the 12 before. The Viterbi algorithm
finds the path of the largest density ratio q(u) / p(u). Were the trellis perfect, one stage for
each bit of KL would give ``u - m`` the variance rho and no correlation with m; 1.03 stages are
needed. Every bit of the path is a bit of the file: there is no index to model and no entropy coder,
a step's first bits tell its length, and whatever steps a prefix of the file holds decode.

This is not an exact sample: given q and the shared noise the path is fixed, its noise is right in
mean, variance and spectrum, and Gaussian because the letters are (``python -m bench overhead``).

**Surprise.** An image's own KL may be far from the expected one, and the number of stages has to
follow the former. So each step multiplies it by a power of 2^(1/8), the *stretch*, coded as a
difference to the step before.

**Large steps.** A dimension worth more than 3 bits is sent twice, coarsely by a quantiser with
shared dither and a Rice code, then on the trellis. Observations combine by their precisions
(Gaussians are successively refinable), so that this costs but the quantiser's quarter bit.

**Exact arithmetic.** The decoder computes with integers, tables, and single IEEE operations
(+ - * / sqrt) in float64. The encoder's scores are integers below 2^24 held in float32, so that its
choice doesn't depend on the order of a sum either: the same bytes on every machine.
"""
