"""The agent: V sees, M remembers, C acts, for a whole batch of real environments at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from wm_engine.checks import check_choice, check_tensor
from wm_engine.controller import ControllerSpec, act
from wm_engine.memory.model import MDNRNN
from wm_engine.vision.model import VAE


class Agent:
    """Candidates of a population acting on real frames (Ha & Schmidhuber 2018, section 2.4).

    Parameters
    ----------
    vae, mdnrnn : V and M; both are moved to ``device``
    spec : the controllers' shape
    params : float32 [P, D], the candidates
    precision : "fp32" | "bf16", of V's convolutions

    C's actions should lie in the environment's bounds (the squash sees to it): the environment clips them, M hears of
    them unclipped.

    A lane is one environment, driven by one candidate, with its own hidden state (h, c). What a lane does depends on
    its own frames alone up to rounding: the rounding of a batched matrix product may depend on the size of the batch.
    """

    def __init__(
        self,
        vae: VAE,
        mdnrnn: MDNRNN,
        spec: ControllerSpec,
        params: Tensor,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
    ) -> None:
        for name, ours, theirs in (
            ("vae.latent", vae.latent, spec.latent),
            ("mdnrnn.latent", mdnrnn.latent, spec.latent),
            ("mdnrnn.hidden", mdnrnn.hidden, spec.hidden),
            ("mdnrnn.action", mdnrnn.action, spec.action),
        ):
            if ours != theirs:
                raise ValueError(f"{name} must be {theirs}, as in the controller's spec, but was {ours}")
        check_tensor("params", params, ["P", spec.num_params], finite=False)
        check_choice("precision", precision, ("fp32", "bf16"))
        self.device = torch.device(device)
        self.spec = spec
        self._vae, self._m = vae.to(self.device).eval(), mdnrnn.to(self.device).eval()
        self._params = params.detach().to(self.device, torch.float32)
        self._autocast = precision == "bf16"
        self._candidate = torch.zeros(0, dtype=torch.int64, device=self.device)
        self._h, self._c = self._m.initial_state(0)

    @property
    def num_candidates(self) -> int:
        """P."""
        return len(self._params)

    def with_params(self, params: Tensor) -> Agent:
        """An agent with the same V and M and other candidates, float32 [P, D]."""
        precision = "bf16" if self._autocast else "fp32"
        return Agent(self._vae, self._m, self.spec, params, self.device, precision)

    def begin(self, candidate: np.ndarray) -> None:
        """New episodes: lane i is driven by ``candidate[i]`` (int64 [n], each in [0, P)), its hidden state zero."""
        chosen = np.asarray(candidate)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or len(chosen) == 0:
            raise ValueError(f"candidate must be one index a lane, but was {candidate!r}")
        if chosen.min() < 0 or chosen.max() >= self.num_candidates:
            raise ValueError(f"candidate must be in [0, {self.num_candidates}), but was {chosen}")
        self._candidate = torch.as_tensor(chosen.astype(np.int64), device=self.device)
        self._h, self._c = self._m.initial_state(len(chosen))

    @torch.inference_mode()
    def act(
        self,
        frames: np.ndarray,
        lanes: np.ndarray | None = None,
        perturb: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """One step of the given lanes: V's mean of the frame, C's action on it, M's hidden state moved on by both.

        Parameters
        ----------
        frames : uint8 [m, 64, 64, 3]
        lanes : int64 [m], which lanes these frames are of; None: all, in order
        perturb : what becomes of the actions float32 [m, A] before they are taken (exploration noise); M hears of the
            actions as they are then

        Returns
        -------
        actions : float32 [m, A]; a row is non-finite where its candidate's parameters are
        """
        index = torch.arange(len(self._candidate)) if lanes is None else torch.as_tensor(np.asarray(lanes))
        index = index.to(self.device)
        if len(frames) != len(index) or len(index) > len(self._candidate):
            raise ValueError(
                f"frames must be one a lane ({len(index)} of {len(self._candidate)} lanes), but were {len(frames)}"
            )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            z, _ = self._vae.encode(torch.tensor(np.asarray(frames), device=self.device))
        z = z.float()
        h, c = self._h[index], self._c[index]
        seen = self.spec.observe(z, h, c).unsqueeze(1)
        actions = act(self.spec, self._params[self._candidate[index]], seen).squeeze(1)
        taken = actions.cpu().numpy()
        if perturb is not None:
            taken = np.asarray(perturb(taken), dtype=np.float32)
            actions = torch.from_numpy(taken).to(self.device)
        if self.spec.features != "z":  # C does not look at the hidden state otherwise
            self._h[index], self._c[index] = self._m.step(z, actions, (h, c))
        return taken
