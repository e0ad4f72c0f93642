"""Every loss, with every option and kernel, beside its independent definition."""

import loss_definitions as reference

from dhel_kcl.losses import DCL, DHEL, IMQ, KCL, Gaussian, GaussianRiesz, InfoNCE, Log, NTXent, Riesz

T, GAMMA = 0.3, 3.0

CASES = {
    "infonce": (InfoNCE(T), lambda u, v: reference.infonce(u, v, T)),
    "infonce one way": (InfoNCE(T, symmetric=False), lambda u, v: reference.infonce_one_way(u, v, T)),
    "ntxent": (NTXent(T), lambda u, v: reference.ntxent(u, v, T)),
    "dcl": (DCL(T), lambda u, v: reference.dcl(u, v, T)),
    "dhel": (DHEL(T), lambda u, v: reference.dhel(u, v, T)),
    "dhel one view": (DHEL(T, both_views=False), lambda u, v: reference.dhel_one_view(u, v, T)),
} | {
    f"kcl {kernel}": (KCL(kernel, GAMMA), lambda u, v, p=positive, e=energy: reference.kcl(u, v, p, e, GAMMA))
    for kernel, positive, energy in [
        (Gaussian(2.0), reference.gaussian(2.0), reference.gaussian(2.0)),
        (Log(1.5), reference.log(1.5), reference.log(1.5)),
        (IMQ(0.7), reference.imq(0.7), reference.imq(0.7)),
        (Riesz(1.5), reference.riesz(1.5), reference.riesz(1.5)),
        (Riesz(-0.5), reference.riesz(-0.5), reference.riesz(-0.5)),
        (GaussianRiesz(1.0), reference.gaussian(2.0), reference.riesz(1.0)),
        (GaussianRiesz(-1.0), reference.gaussian(2.0), reference.riesz(-1.0)),
    ]
}
