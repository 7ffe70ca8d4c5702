import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import isd


def test_genes_are_the_sums_of_their_isoforms(adata):
    before = adata.copy()
    mdata = isd.pp.to_mudata(adata)
    gene = mdata["gene"]
    expected = pd.DataFrame(adata.X.toarray().T).groupby(adata.var["gene_id"].to_numpy(), sort=False).sum().T
    np.testing.assert_array_equal(gene.X.toarray(), expected)
    assert list(gene.var_names) == list(expected.columns) and isinstance(gene.X, sparse.csr_matrix)
    assert gene.var["gene_name"].tolist() == adata.var.drop_duplicates("gene_id")["gene_name"].tolist()
    assert gene.var["n_isoforms"].sum() == adata.n_vars
    for obs in (mdata.obs, gene.obs, mdata["isoform"].obs):
        assert obs["leiden"].tolist() == adata.obs["leiden"].tolist()
    assert mdata["isoform"].X is adata.X
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_a_layer_of_counts_stays_a_layer(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    gene = isd.pp.to_mudata(adata)["gene"]
    np.testing.assert_array_equal(gene.layers["counts"].sum(1), adata.layers["counts"].sum(1))
    np.testing.assert_allclose(np.expm1(gene.X.toarray()).sum(1), 1e4, rtol=1e-4)


# mudata announces its next version's defaults, on writing too
@pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")
def test_there_and_back(adata, tmp_path):
    import mudata

    adata.obsm["X_pca"] = np.zeros((adata.n_obs, 2))
    mdata = isd.pp.to_mudata(adata)
    mdata.obs["new"] = 1
    mdata.write(tmp_path / "both.h5mu")
    again = isd.pp.from_mudata(mudata.read_h5mu(tmp_path / "both.h5mu"))
    assert (again.X != adata.X).nnz == 0
    assert again.obs["new"].eq(1).all() and "X_pca" in again.obsm
    assert list(again.var.columns) == list(adata.var.columns)
    assert not [c for c in again.obs if ":" in c]


def test_transcripts_without_a_gene_are_counted(adata):
    adata.var.loc[adata.var_names[:3], "gene_id"] = None
    with pytest.warns(UserWarning, match="3 of 200 transcripts have no gene"):
        gene = isd.pp.to_mudata(adata)["gene"]
    assert gene.X.sum() == adata.X[:, 3:].sum()
    assert gene.var["gene_name"].tolist() == adata.var[3:].drop_duplicates("gene_id")["gene_name"].tolist()


def test_odd_input_is_named(adata):
    with pytest.raises(TypeError, match="must be an AnnData"):
        isd.pp.to_mudata("adata")
    with pytest.raises(KeyError, match=r"'nothing' is not in adata\.var"):
        isd.pp.to_mudata(adata, "nothing")
    with pytest.raises(TypeError, match="must be a MuData"):
        isd.pp.from_mudata(adata)
    with pytest.raises(KeyError, match=r"'rna' is not in mdata, which has \['isoform', 'gene'\]"):
        isd.pp.from_mudata(isd.pp.to_mudata(adata), "rna")
    adata.var["gene_id"] = ""
    with pytest.raises(ValueError, match="names no gene"):
        isd.pp.to_mudata(adata)
    assert isinstance(
        isd.pp.to_mudata(
            ad.AnnData(np.eye(2, dtype=np.float32), var=pd.DataFrame({"g": ["a", "a"]}, index=["t", "u"])), "g"
        )["gene"].X,
        sparse.csr_matrix,
    )
