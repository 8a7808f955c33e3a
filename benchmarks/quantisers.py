"""Every quantiser on the feature differences of a finished run, through a small autoencoder: python benchmarks/quantisers.py RUN
Method: nbs/parts/quantisers. Truth is read only to score."""
import argparse, json, sys
from pathlib import Path

from machine import RESULTS, save  # before NumPy: it sets its threads
import numpy as np

TOKENS, CODES, DIM, STEPS, BATCH, COMPONENTS = 4, 16, 16, 200, 128, 128


def differences(run) -> tuple:
    "Standardised principal components of the hand's feature differences `p c`, bool `p` train, motion `p 3`, clips `p`."
    from motionvla.latent_probe import load_truth
    from motionvla.datasets import clip_part
    from motionvla.masks import load_pairs
    from sklearn.decomposition import PCA
    pairs, features = load_pairs(run), np.load(run.path/'vqvae'/'features.npy', mmap_mode='r')
    at = np.flatnonzero(clip_part(pairs.clip) == 'human')
    columns = {k: getattr(pairs, k)[at] for k in ('clip', 'body', 'split', 'source', 'target', 't_source_s', 't_target_s')}
    x = np.concatenate([np.asarray(features[t], np.float32) - np.asarray(features[s], np.float32) for s, t in zip(*(np.array_split(columns[k], 20) for k in ('source', 'target')))]).reshape(len(at), -1)
    train = columns['split'] == 'train'
    pca = PCA(COMPONENTS, svd_solver='randomized', iterated_power=3, random_state=0).fit(x[train])
    x = pca.transform(x)
    return (x/x[train].std()).astype(np.float32), train, load_truth(run, columns)['motion'], columns['clip']


def one(quantiser, x, train, motion, seed) -> tuple:
    "(error as a share of the variance, codes in use, motion R²) on held-out clips, through hard codes."
    import torch
    from motionvla.latent_measure import code_use, perplexity
    from motionvla.latent_probe import mean_r2, one_hot, probe, r2
    from motionvla.training import batch_rows
    from torch import nn
    torch.manual_seed(seed); torch.set_num_threads(1)
    q = quantiser()
    encoder = nn.Sequential(nn.Linear(COMPONENTS, 192), nn.GELU(), nn.Linear(192, TOKENS*DIM))
    decoder = nn.Sequential(nn.Linear(TOKENS*DIM, 192), nn.GELU(), nn.Linear(192, COMPONENTS))
    model = nn.ModuleList([encoder, q, decoder]); optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=.01)
    data = torch.from_numpy(x); rows = np.flatnonzero(train)
    for step in range(STEPS):
        batch = data[rows[batch_rows(step, len(rows), BATCH, seed)]]
        seen, _, loss = q(encoder(batch).view(-1, TOKENS, DIM))
        (nn.functional.mse_loss(decoder(seen.flatten(1)), batch) + loss).backward(); optimizer.step(); optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        z = encoder(data).view(-1, TOKENS, DIM)
        if hasattr(q, 'fit_bins'): q.fit_bins(z[train], seed)
        seen, index, _ = q(z); guess = decoder(seen.flatten(1)).numpy()
    index, ok = index.numpy(), np.isfinite(motion).all(1)
    told = probe(one_hot(index, CODES), np.nan_to_num(motion), train & ok)
    test, held = ~train, ~train & ok
    return (float(((guess - x)[test]**2).sum()/((x - x[test].mean(0))[test]**2).sum()), float(perplexity(code_use(index[test], CODES)).mean()),
            mean_r2(r2(motion[held], told[held])))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='folder of a finished run whose world has truth'); parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--only', nargs='*', default=[], help='run these and keep the other rows of the last results')
    asked = parser.parse_args()
    from motionvla.quantisers import QUANTISERS, make_quantiser
    from motionvla.runs import open_run
    x, train, motion, clips = differences(open_run(asked.run))
    kinds = {k: lambda k=k: make_quantiser(k, CODES, DIM, TOKENS, steps=STEPS//2) for k in QUANTISERS}
    kinds |= {f'{k}, random start': lambda k=k: make_quantiser(k, CODES, DIM, TOKENS, kmeans=False) for k in ('vq', 'vq_loss')}
    kinds['vq_loss, no restart'] = lambda: make_quantiser('vq_loss', CODES, DIM, TOKENS, restart=False, kmeans=False)
    from motionvla import vqvae
    if hasattr(vqvae, 'Codebook'): kinds['hand-written'] = lambda: vqvae.Codebook(CODES, DIM, TOKENS)  # what stage 01 had before these
    last, table = RESULTS/'quantisers.json', []
    if asked.only: table = [r for r in json.loads(last.read_text())['rows'] if r['kind'] not in asked.only] if last.exists() else []
    kinds = {k: q for k, q in kinds.items() if k in (asked.only or kinds)}
    for kind, quantiser in kinds.items():
        found = np.array([one(quantiser, x, train, motion, seed) for seed in range(asked.seeds)])
        (error, used, score), sd = found.mean(0), found.std(0)
        table.append(dict(kind=kind, train=int(train.sum()), test=int((~train).sum()), seeds=asked.seeds, error=error, error_sd=sd[0], perplexity=used,
                          perplexity_sd=sd[1], motion_r2=score, motion_sd=sd[2]))
        print(kind, *(f'{v:.3f}' for v in (error, used, score)), file=sys.stderr, flush=True)
    save('quantisers', table)
