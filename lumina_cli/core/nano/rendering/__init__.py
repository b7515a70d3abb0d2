"""The nano renderer: shapes as signed distance functions, ray marching, shading."""
