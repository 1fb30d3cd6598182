"""The variances of the chain's reverse steps by name; for the command line too, without torch.

``learned`` is the network's own, ``fixed-small`` DDPM's beta-tilde, ``fixed-large`` its beta.
"""

VARIANCES = ("learned", "fixed-small", "fixed-large")
