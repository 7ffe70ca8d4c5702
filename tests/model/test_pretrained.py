import numpy as np
import pandas as pd
import pytest
import torch

import isd
from isd.model import VAE
from isd.model._covariate_shifts import covariate_shifts
from isd.model._pretrained import PARTS, is_in_part

SMALL = {"n_hidden": 16, "n_latent": 4, "output_rank": 6}


def make_reference(adata, gene_key=None, batch_key=None, steps=150, **options):
    VAE.setup_anndata(adata, gene_key=gene_key, batch_key=batch_key)
    reference = VAE(adata, **{**SMALL, **options})
    reference.train(max_steps=steps, gene_encoder=False)
    return reference


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def atlas(_simulated):
    return _simulated[:200].copy()


@pytest.fixture(scope="module")
def reference(atlas):
    return make_reference(atlas)


@pytest.fixture(scope="module")
def gene_reference(_simulated):
    return make_reference(_simulated[:200].copy(), "gene_id")


def other_cells(adata, columns, gene_key=None):
    mine = adata[200:, columns].copy()
    VAE.setup_anndata(mine, gene_key=gene_key)
    return mine


@pytest.mark.parametrize("gene_key", [None, "gene_id"])
def test_features_in_another_order_give_the_references_latents_and_means(
    adata, reference, gene_reference, gene_key, rng
):
    reference = gene_reference if gene_key else reference
    order = rng.permutation(adata.n_vars)
    mine = other_cells(adata, order, gene_key)
    mine.var_names = [name.split(".")[0] + ".77" for name in mine.var_names]  # another release's versions
    VAE.setup_anndata(mine, gene_key=gene_key)
    vae = VAE.from_pretrained(reference, mine, calibrate=False, own_axes=0)
    theirs = adata[200:].copy()
    np.testing.assert_allclose(
        vae.get_latent_representation(), reference.get_latent_representation(theirs), rtol=1e-4, atol=1e-4
    )
    ours = vae.get_normalized_expression(return_numpy=True)
    expected = reference.get_normalized_expression(theirs, return_numpy=True)[:, order]
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=1e-7)
    assert (vae.transfer_report["source"] == "copied").all()
    assert vae.transfer_report["reference"].tolist() == list(adata.var_names[order])


def test_the_report_says_where_each_feature_comes_from_and_survives_a_save(adata, reference, tmp_path):
    sizes = adata.var["gene_id"].value_counts()
    several = adata.var["gene_id"].map(sizes) > 2
    mine = other_cells(adata, np.flatnonzero(several | (np.arange(adata.n_vars) < 50)))
    # one isoform of a gene that has others is another one here; one feature has neither name nor gene in the reference
    renamed = [str(np.flatnonzero(several)[0]), str(mine.n_vars - 1)]
    first = mine.var_names.get_loc(adata.var_names[int(renamed[0])])
    names = list(mine.var_names)
    names[first], names[-1] = "NOVEL1", "NOVEL2"
    mine.var_names = names
    mine.var.loc["NOVEL2", "gene_id"] = "ELSEWHERE"
    VAE.setup_anndata(mine)
    vae = VAE.from_pretrained(reference, mine)
    report = vae.transfer_report.set_index("feature")
    counts = report["source"].value_counts()
    assert counts["from gene"] == 1 and counts["new"] == 1 and counts["copied"] == mine.n_vars - 2
    assert counts["dropped"] == adata.n_vars - counts["copied"]
    assert report.loc["NOVEL1", "source"] == "from gene"
    assert report.loc["NOVEL1", "reference"] == mine.var.loc["NOVEL1", "gene_id"]
    weights, theirs = vae.module.encoder.body[0][0].weight, reference.module.encoder.body[0][0].weight
    torch.testing.assert_close(weights[-1], theirs.mean(0))
    members = np.flatnonzero(adata.var["gene_id"] == mine.var.loc["NOVEL1", "gene_id"])
    usage = torch.softmax(reference.module.decoder.mean.bias[members], 0)
    torch.testing.assert_close(weights[first], usage @ theirs[members])
    vae.save(tmp_path / "model")
    again = VAE.load(tmp_path / "model", mine)
    pd.testing.assert_frame_equal(
        again.transfer_report.astype(str), vae.transfer_report.astype(str), check_column_type=False
    )


def test_a_reference_helps_and_one_with_shuffled_features_does_not(adata, reference, rng):
    isd.pp.split(adata, test_size=0.3, validation_size=0.1)
    few = adata[200:].copy()
    VAE.setup_anndata(few)
    test = np.flatnonzero(few.obs["isd_split"] == "test")

    def score(vae):
        vae.train(max_steps=60, gene_encoder=False)
        return -float(vae.get_marginal_ll(few, indices=test, n_mc_samples=10))

    scratch = score(VAE(few, **SMALL))
    copied = VAE.from_pretrained(reference, few)
    precision = copied.pretrained_["precision"]
    assert score(copied) < scratch - 5
    other = few.copy()
    other.var_names = rng.permutation(other.var_names)
    VAE.setup_anndata(other)
    shuffled = VAE.from_pretrained(reference, other)
    # what is known of other features says nothing of these: the precision of the prior shows it
    assert shuffled.pretrained_["precision"] < 2 < 10 < precision


def test_frozen_parts_stay_as_they_are_and_stay_frozen_after_loading(adata, reference, tmp_path):
    mine = other_cells(adata, np.arange(150))
    vae = VAE.from_pretrained(reference, mine, freeze=("trunk", "first_layer"))
    for _ in range(2):
        before = {name: value.detach().clone() for name, value in vae.module.named_parameters()}
        vae.train(max_steps=3, gene_encoder=False)
        for name, value in vae.module.named_parameters():
            frozen = name.startswith("encoder.") or is_in_part(name, "trunk")
            assert torch.equal(before[name], value) == frozen, name
        vae.save(tmp_path / "model", overwrite=True)
        vae = VAE.load(tmp_path / "model", mine)
        assert vae.frozen == ["first_layer", "trunk"]
    assert vae.module.decoder.mean.loadings.requires_grad


def test_parts_are_all_of_the_networks_and_first_trunk_and_last_do_not_overlap(gene_reference):
    names = [name for name, _ in gene_reference.module.named_parameters() if not name.startswith("label_head")]
    for name in names:
        assert sum(is_in_part(name, part) for part in ("first_layer", "trunk", "last_layer")) == 1, name
        assert is_in_part(name, "encoder") != is_in_part(name, "decoder")
    # whatever has a row for each feature or gene is in the first or the last layer
    sizes = {gene_reference.module.n_input, gene_reference.module.n_genes, gene_reference.module.n_shared}
    for name, value in gene_reference.module.named_parameters():
        if set(value.shape) & sizes:
            assert not is_in_part(name, "trunk"), name


def test_running_statistics_of_a_frozen_layer_are_frozen_with_it(adata):
    options = {"preset": "published", "n_hidden": 16, "n_latent": 4, "output_rank": None}
    known = make_reference(adata[:200].copy(), steps=5, **options)
    mine = other_cells(adata, np.arange(150))
    vae = VAE.from_pretrained(known, mine, freeze="encoder")
    vae.train(max_steps=3, gene_encoder=False)
    norm, theirs = vae.module.encoder.body[0][1], known.module.encoder.body[0][1]
    torch.testing.assert_close(norm.running_mean, theirs.running_mean, rtol=0, atol=0)
    assert not torch.equal(vae.module.decoder.body[0][1].running_mean, known.module.decoder.body[0][1].running_mean)


def test_batches_that_the_model_does_not_tell_apart_go_into_the_bias(adata):
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 4 == 0, "a", "b")
    known = make_reference(adata[:200].copy(), batch_key="batch", steps=20)
    mine = other_cells(adata, np.arange(adata.n_vars))
    vae = VAE.from_pretrained(known, mine, calibrate=False)
    first, theirs = vae.module.encoder.body[0][0], known.module.encoder.body[0][0]
    share = np.bincount(known.template_codes_[:, 1]) / len(known.template_codes_)
    library, batches = theirs.covariates[:1], theirs.covariates[1:]
    torch.testing.assert_close(first.covariates, library)
    torch.testing.assert_close(first.bias, theirs.bias + torch.as_tensor(share, dtype=torch.float32) @ batches)
    # and one of the two, with a new one: matched by name, the mean over both
    mine.obs["batch"] = np.where(np.arange(mine.n_obs) % 2 == 0, "b", "c")
    VAE.setup_anndata(mine, batch_key="batch")
    vae = VAE.from_pretrained(known, mine, calibrate=False)
    mixed = torch.as_tensor(share, dtype=torch.float32) @ batches
    torch.testing.assert_close(vae.module.encoder.body[0][0].covariates, torch.stack([library[0], batches[1], mixed]))
    torch.testing.assert_close(vae.module.encoder.body[0][0].bias, theirs.bias)


def test_a_union_of_vocabularies_learns_only_of_what_was_measured(adata, reference, tmp_path):
    mine = other_cells(adata, np.arange(40, 200))
    start = {"calibrate": False, "own_axes": 0}
    union = VAE.from_pretrained(reference, mine, vocabulary="union", **start)
    names = [*mine.var_names, *adata.var_names[:40]]
    assert list(union.feature_names) == names and mine.n_vars == 160
    report = union.transfer_report.set_index("feature")
    assert report["measured"].to_numpy().tolist() == [True] * 160 + [False] * 40
    # what was not measured has no part in the likelihood
    target = VAE.from_pretrained(reference, mine, **start)
    ours, expected = (float(v.get_marginal_ll(indices=[1, 2, 3], n_mc_samples=200)) for v in (union, target))
    assert ours == pytest.approx(expected, abs=1.0)
    union = VAE.from_pretrained(reference, mine, vocabulary="union")
    loadings = union.module.decoder.mean.loadings
    before = loadings[:, 160:].detach().clone()
    moved = loadings[:, :160].detach().clone()
    union.train(max_steps=5, gene_encoder=False)
    torch.testing.assert_close(loadings[:, 160:], before, rtol=0, atol=0)
    assert not torch.equal(loadings[:, :160], moved)
    # the reference still says how much of them a cell has
    made = union.decode(union.get_latent_representation(), library_size=2000, sample=False)
    theirs = reference.get_normalized_expression(adata[200:].copy(), return_numpy=True)
    assert 0.5 < made[:, 160:].sum() / made.sum() / (theirs[:, :40].sum() / theirs.sum()) < 2
    union.save(tmp_path / "model", save_anndata=True)
    again = VAE.load(tmp_path / "model")
    assert float(again.get_elbo()) == pytest.approx(float(union.get_elbo()), rel=0.02)


def test_shifts_of_batches_move_with_their_features(adata):
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 4 == 0, "a", "b")
    known = make_reference(adata[:200].copy(), batch_key="batch", steps=20)
    theirs = known.module.decoder.shift.detach()
    assert theirs.abs().max() > 0.01
    order = np.random.default_rng(0).permutation(adata.n_vars)
    mine = other_cells(adata, order)
    share = torch.as_tensor(np.bincount(known.template_codes_[:, 1]) / len(known.template_codes_), dtype=torch.float32)
    # a model without batches has what they shift on average
    vae = VAE.from_pretrained(known, mine, calibrate=False, own_axes=0)
    bias = known.module.decoder.mean.bias.detach() + share @ theirs
    torch.testing.assert_close(vae.module.decoder.mean.bias.detach(), bias[order])
    # one with another batch has the known one's, and for the new one the mean of those
    mine.obs["batch"] = np.where(np.arange(mine.n_obs) % 2 == 0, "b", "c")
    VAE.setup_anndata(mine, batch_key="batch")
    vae = VAE.from_pretrained(known, mine, calibrate=False, own_axes=0)
    wanted = torch.stack([theirs[1], share @ theirs])[:, order]
    torch.testing.assert_close(vae.module.decoder.shift.detach(), wanted)


def test_a_reference_without_batches_leaves_shifts_to_the_cells_at_hand(adata, reference):
    mine = adata[200:].copy()
    mine.obs["batch"] = np.where(np.arange(mine.n_obs) % 2 == 0, "b", "c")
    VAE.setup_anndata(mine, batch_key="batch")
    vae = VAE.from_pretrained(reference, mine, calibrate=False)
    rows = vae._split()[0]
    codes = vae._codes()[rows]
    wanted = covariate_shifts(mine.X, rows, codes[:, 0], codes[:, 1:], [2])
    np.testing.assert_allclose(vae.module.decoder.shift.detach().numpy(), wanted, atol=1e-6)


def test_labels_are_matched_by_name(adata, reference):
    mine = adata[200:].copy()
    mine.obs["leiden"] = mine.obs["leiden"].map({"0": "2", "1": "new", "2": "0", "3": "2"}).astype("category")
    VAE.setup_anndata(mine)
    vae = VAE.from_pretrained(reference, mine, calibrate=False)
    theirs = reference.module.label_head.weight
    rows = {label: vae.module.label_head.weight[i] for i, label in enumerate(vae.labels)}
    torch.testing.assert_close(rows["0"], theirs[list(reference.labels).index("0")])
    torch.testing.assert_close(rows["new"], theirs.mean(0))
    vae = VAE.from_pretrained(reference, mine, match_labels=False, calibrate=False)
    torch.testing.assert_close(vae.module.label_head.weight, theirs.mean(0).expand(3, -1))


def test_training_follows_the_rule_for_weights_that_are_nearly_right(adata, reference):
    mine = other_cells(adata, np.arange(150))
    vae = VAE.from_pretrained(reference, mine)
    rule, scratch = vae._train_rule(), VAE(mine, **SMALL)._train_rule()
    assert rule["lr"] == 3e-4 < scratch["lr"]
    assert rule["kl_warmup"] == 0 and rule["max_steps"] == scratch["max_steps"] // 4  # fewer than 200 cells
    assert not vae.pretrained_["far"]


def test_a_reference_of_another_depth_is_far_and_trains_in_larger_steps_where_cells_are_enough(adata, tmp_path):
    deep = adata.copy()
    deep.X = adata.X * 500
    known = make_reference(deep, steps=20)
    VAE.setup_anndata(adata)
    vae = VAE.from_pretrained(known, adata)
    assert vae.pretrained_["far"] and vae._train_rule()["lr"] == VAE(adata, **SMALL)._train_rule()["lr"]
    vae.save(tmp_path / "model")
    assert VAE.load(tmp_path / "model", adata)._train_rule()["lr"] == 1e-3
    few = adata[:100].copy()
    few.var_names = ["NOVEL", *few.var_names[1:]]
    VAE.setup_anndata(few)
    vae = VAE.from_pretrained(known, few)
    assert vae._train_rule()["lr"] == 3e-4
    # its scores are no ground for a regression of what it does not know
    start = VAE.from_pretrained(known, few, calibrate=False)
    assert vae.transfer_report["source"][0] == "from gene"
    assert torch.equal(vae.module.decoder.mean.loadings[:, 0], start.module.decoder.mean.loadings[:, 0])


def test_new_features_start_from_the_dispersion_of_features_that_are_seen(adata, reference):
    mine = other_cells(adata, np.arange(150))
    mine.var_names = ["NOVEL", *mine.var_names[1:]]
    mine.var["gene_id"] = [None, *mine.var["gene_id"][1:]]
    VAE.setup_anndata(mine)
    vae = VAE.from_pretrained(reference, mine, calibrate=False)
    share = torch.softmax(reference.module.decoder.mean.bias, 0)
    torch.testing.assert_close(vae.module.log_theta[0], share @ reference.module.log_theta)
    torch.testing.assert_close(vae.module.log_clump[0], share @ reference.module.log_clump)


def test_clumps_are_copied_with_their_features_and_absent_where_the_reference_has_none(adata, reference):
    mine = other_cells(adata, np.arange(150)[::-1])
    vae = VAE.from_pretrained(reference, mine, calibrate=False)
    torch.testing.assert_close(vae.module.log_clump.flip(0), reference.module.log_clump[:150])
    VAE.setup_anndata(adata)
    single = VAE(adata, n_hidden=16, n_latent=4, clumps=False)
    single.train(max_steps=2)
    VAE.setup_anndata(mine)
    assert VAE.from_pretrained(single, mine).module.log_clump is None


def test_training_stops_when_validation_cells_gain_nothing(adata, reference):
    mine = other_cells(adata, np.arange(150))
    mine.obs["isd_split"] = np.where(np.arange(mine.n_obs) < 60, "train", "validation")
    vae = VAE.from_pretrained(reference, mine)
    # steps so large that the first ones already are too far
    vae.train(max_steps=60, lr=1.0, early_stopping_patience=3, gene_encoder=False)
    losses = vae.history["validation_loss"].iloc[:, 0]
    assert len(losses) - 1 - losses.argmin() == 3 and len(losses) < 20


def test_the_reference_may_be_a_folder_of_either_model_and_is_not_changed(adata, reference, tmp_path):
    reference.save(tmp_path / "vae")
    before = reference.fingerprint
    mine = other_cells(adata, np.arange(150))
    ours = VAE.from_pretrained(reference, mine)
    np.testing.assert_array_equal(
        VAE.from_pretrained(tmp_path / "vae", mine).get_latent_representation(), ours.get_latent_representation()
    )
    ours.train(max_steps=3, gene_encoder=False)
    assert reference.fingerprint == before == ours.pretrained_["reference"]
    (tmp_path / "diffusion").mkdir()
    reference.save(tmp_path / "diffusion" / "vae")
    assert VAE.from_pretrained(tmp_path / "diffusion", mine).pretrained_["reference"] == before
    assert np.isin(reference.train_obs_hash, ours.train_obs_hash).all()


def test_errors_say_what_to_do(adata, reference, gene_reference):
    fresh = adata[200:].copy()
    with pytest.raises(ValueError, match=r"call isd\.model\.VAE\.setup_anndata"):
        VAE.from_pretrained(reference, fresh)
    mine = other_cells(adata, np.arange(150))
    with pytest.raises(ValueError, match="no part of a VAE; choose of"):
        VAE.from_pretrained(reference, mine, freeze="head")
    with pytest.raises(ValueError, match="vocabulary is 'all'"):
        VAE.from_pretrained(reference, mine, vocabulary="all")
    genes = other_cells(adata, np.arange(adata.n_vars), "gene_id")
    with pytest.raises(ValueError, match="no genes and gives counts"):
        VAE.from_pretrained(gene_reference, genes, vocabulary="union")
    with pytest.raises(ValueError, match="own_axes is -1"):
        VAE.from_pretrained(reference, mine, own_axes=-1)
    with pytest.raises(TypeError, match="got int"):
        VAE.from_pretrained(3, mine)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        VAE.from_pretrained("nowhere", mine)
    with pytest.raises(ValueError, match="not trained yet"):
        VAE.from_pretrained(VAE(mine, **SMALL), mine)
    with pytest.raises(ValueError, match='gene_key="gene_id"'):
        VAE.from_pretrained(gene_reference, mine)
    mine.var_names = [f"X{i}" for i in range(mine.n_vars)]
    VAE.setup_anndata(mine)
    with pytest.raises(ValueError, match="none of the 150 features"):
        VAE.from_pretrained(reference, mine)
    mine.var_names = [*adata.var_names[:10], *mine.var_names[10:]]
    VAE.setup_anndata(mine)
    with pytest.warns(UserWarning, match="knows 10 of the 150"):
        VAE.from_pretrained(reference, mine)


def test_a_model_that_started_from_nothing_has_no_report(reference):
    assert reference.transfer_report is None and reference.frozen == []
    assert set(PARTS) == {"encoder", "decoder", "first_layer", "last_layer", "trunk"}
